"""Preference rows of any form that TRL knows, as one: prompt, chosen and rejected. Imports nothing slow."""

import re
from collections.abc import Mapping
from itertools import takewhile

from srmir_lib.conversations import as_chat, assistant_message, user_message
from srmir_lib.errors import InputError

PAIR = ("prompt", "chosen", "rejected")

EQUAL = "chosen and rejected are equal; a pair needs two answers, leave the row out"

SAID = re.compile(r"\n\n(Human|Assistant):")
"""What begins a turn in the dialogues of hh-rlhf (Bai et al. 2022)."""


def as_pair(row: Mapping) -> dict[str, list[dict]]:
    """What a preference row says: `prompt`, a conversation, and two answers to it, one message of the assistant each.

    Answers may be texts, messages, or whole dialogues, of which all but the last answer is the prompt. A row without
    `prompt` has an implicit one, as TRL's `extract_prompt` reads it: what its answers have in common at the beginning;
    of hh-rlhf's dialogues, whole turns. What is nothing of this, two different prompts, and two equal answers are an
    `InputError`.
    """
    if missing := [name for name in PAIR[1:] if name not in row]:
        raise InputError(f"lacks {', '.join(missing)}")
    for name in PAIR:
        if row.get(name, "") is None:
            raise InputError(f"{name} is null; leave the row out{', or the column' if name == 'prompt' else ''}")
    asked, sides = row.get("prompt"), [row[name] for name in PAIR[1:]]
    if sides[0] == sides[1]:
        raise InputError(EQUAL)
    if asked is None and all(isinstance(side, str) for side in sides):
        if all(SAID.match(side) for side in sides):
            sides = [_turns(side, name) for side, name in zip(sides, PAIR[1:], strict=True)]
        else:
            asked, *sides = _common(*sides)
    if asked is None and not all(isinstance(side, list) and len(side) > 1 for side in sides):
        raise InputError("lacks prompt, and its answers do not begin with one in common")
    chat = None if asked is None else as_chat(asked)
    parts = [_split(chat, asked, side, name) for side, name in zip(sides, PAIR[1:], strict=True)]
    (prompt, chosen), (other, rejected) = parts
    if _said(prompt) != _said(other):
        raise InputError("chosen and rejected part before their last answers; a pair must answer one conversation")
    for name, text in zip(PAIR[1:], (chosen, rejected), strict=True):
        if not text.strip():
            raise InputError(f"{name} is empty; an answer needs a word")
    if chosen.strip() == rejected.strip():
        raise InputError(EQUAL)
    return {"prompt": prompt, "chosen": assistant_message(chosen), "rejected": assistant_message(rejected)}


def as_pairs(pairs):
    """A `Dataset` of preference rows, its three columns in the form of `as_pair`; the others stay. An `InputError`
    names the row, from 0, as `datasets` counts."""
    columns, rows = [name for name in PAIR if name in pairs.column_names], []
    if not set(PAIR[1:]) <= set(columns):
        raise InputError(f"preferences: there must be columns {' and '.join(PAIR[1:])}, not {pairs.column_names}")
    for number, row in enumerate(pairs.select_columns(columns)):
        try:
            rows.append(as_pair(row))
        except InputError as error:
            raise InputError(f"preferences: row {number} (from 0): {error}") from error
    for name in PAIR:
        values = [row[name] for row in rows]
        if name in columns and values == pairs[name][:]:
            continue
        pairs = (pairs.remove_columns(name) if name in columns else pairs).add_column(name, values)
    return pairs


def two_sided(names) -> list[tuple[str, str]]:
    """Columns that say something of the chosen answer, each with that which says it of the rejected one: `chosen`
    itself, `score_chosen`, `chosen_rating`."""
    both = [(name, name.replace("chosen", "rejected")) for name in names if "chosen" in name]
    return [(one, other) for one, other in both if other in names]


def one_sided(names) -> list[str]:
    """Columns that name an answer, chosen or rejected, and have no counterpart for the other."""
    known = {name for both in two_sided(names) for name in both}
    return [name for name in names if ("chosen" in name or "rejected" in name) and name not in known]


def from_hh(text: str) -> list[dict]:
    """A dialogue of hh-rlhf as messages; a text that is none, or does not end with an answer, is a `ValueError`."""
    head, *parts = SAID.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    messages = [{"role": roles[name], "content": said.strip()} for name, said in turns]
    if head.strip() or len(messages) < 2 or messages[0]["role"] != "user" or messages[-1]["role"] != "assistant":
        raise ValueError("a dialogue must run from a Human turn to an Assistant turn")
    return messages


def _turns(text: str, name: str) -> list[dict]:
    try:
        return from_hh(text)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def _common(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and answers of two texts that begin alike, cut as TRL cuts them: before a space that precedes the first
    difference."""
    at = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    at -= chosen[:at].endswith(" ")
    if not chosen[:at].strip():
        raise InputError("lacks prompt, and its answers do not begin with one in common")
    return chosen[:at], chosen[at:], rejected[at:]


def _split(chat: list[dict] | None, asked, side, name: str) -> tuple[list[dict], str]:
    """The conversation that one side answers, and its answer; `chat`: the prompt, if there is one."""
    if isinstance(side, str):
        return chat, side
    said = as_chat(side, name, ("assistant",))
    before = said[:-1]
    if before and chat is not None:
        spoken = _said(before)
        again = user_message(asked)[0] if isinstance(asked, str) else None
        known = _said([again])[0] in spoken if again else _starts(spoken, _said(chat))
        if not known:
            raise InputError(
                f"{name} holds other messages than the prompt and its answer; put earlier turns into the prompt"
            )
    return before or chat, said[-1]["content"]


def _starts(spoken: list, asked: list) -> bool:
    """Whether a dialogue begins as the prompt does, with or without its system message."""
    own = [turn for turn in spoken if turn[0] != "system"]
    return spoken[: len(asked)] == asked or own[: len(asked)] == asked


def _said(chat) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in chat]
