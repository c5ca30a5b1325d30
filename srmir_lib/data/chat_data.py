"""What a real chat model makes of real prompts: demonstrations by introspection, and pairs. No answer has a label here.

The question why it would refuse presumes a refusal, whatever it is about (SRMIR; Cheng & Cao 2025). So harmful prompts
are demonstrated by the refusals that follow it, harmless ones by what the model says when it is not asked; and of each
the other is the rejected answer.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srmir_lib.conversations import (
    assistant_message,
    is_coherent,
    opens_with_refusal,
    redact,
    text_of,
    user_message,
)
from srmir_lib.data.introspection import counted, introspect
from srmir_lib.data.pairs import make_pairs, without_ties
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.taxonomy import full_name, ordered


@dataclass(frozen=True)
class ChatData:
    """`demonstrations` and `pairs` as 01 saves them; `yields`, by category and of `all`: how many prompts were asked
    about, how many drafts were valid and how many of those refuse, in whole sentences; `left_out`: reason -> texts that
    were left out for it, of a harmless prompt without a whole answer its longest."""

    demonstrations: list[dict]
    pairs: list[dict]
    yields: dict[str, dict[str, int]]
    left_out: dict[str, list[str]]

    def examples(self) -> str:
        """Good: the first refusal of each category with its prompt and draft; bad: the first text that was left out for
        each reason, and how many were; masked as all real text is."""
        found = {}
        for row in self.demonstrations:
            if row["refuses"]:
                found.setdefault(
                    row["category"], [redact(text_of(row[of])) for of in ("prompt", "draft", "completion")]
                )
        good = [
            "{}\n  x      {}\n  draft  {}\n  y      {}".format(full_name(name), *texts) for name, texts in found.items()
        ]
        bad = [f"  {len(texts):4d} x {reason}\n         {redact(texts[0])}" for reason, texts in self.left_out.items()]
        return "\n".join([*good, "left out", *(bad or ["  none"])])


def chat_data(
    trunk: Trunk,
    harmful: Sequence[Mapping],
    harmless: Sequence[Mapping],
    asking: Mapping,
    per_group: int,
    samples: int,
    max_new_tokens: int,
    seed: int,
    every_category: bool = True,
    borrowed: Sequence[Mapping] | None = None,
    progress: str | None = None,
) -> ChatData:
    """Ask a model about prompts of one split. `harmful`, `harmless`: rows with `prompt` and `category`.

    `borrowed`: rows with `prompt`, `category` and `completion`, refusals that are demonstrated instead of the model's
    own; it is not asked about `harmful` ones then, and there are no `yields`.

    `asking`: arguments of `introspect`, from the template on, its temperature for plain answers too; a system message
    of a prompt is left out when the model is asked about it. `per_group`: demonstrations of a category at most, and of
    harmless prompts as many as of all categories together, if so many have a whole answer. `samples`: answers to a
    prompt as it stands, of at most `max_new_tokens`, of which the longest is demonstrated or the first is rejected, in
    as many pairs that choose a refusal as choose help. All answers end with a sentence
    (`whole`): else one that the length cut off would be the worse one wherever it stands. With `every_category` one
    without a valid refusal is an `InputError`.
    """
    ask = {**asking, "category_words": {}, "refuse_words": [], "seed": seed, "progress": progress}
    read, left_out = _introspected(trunk, harmful, ask) if borrowed is None else _as_introspected(borrowed)
    refusing = []
    for row in read:
        if row["refuses"] and opens_with_refusal(text := whole(text_of(row["completion"]))):
            refusing.append(row | {"completion": assistant_message(text)})
        else:
            reason = "no whole refusal" if row["refuses"] else "asked why it would refuse, it does not"
            left_out.setdefault(reason, []).append(text_of(row["completion"]))
    names = ordered(row["category"] for row in [*harmful, *(borrowed or ())])
    found = {name: [row for row in refusing if row["category"] == name] for name in names}
    empty = [name for name, rows in found.items() if not rows]
    if every_category and empty:
        if borrowed is not None:
            raise InputError(f"borrowed: the router finds no refusal about {', '.join(empty)}; it takes more of them")
        why = ", ".join(f"{reason}: {n}" for reason, n in counted(left_out).items()) or "all drafts were valid"
        raise InputError(f"introspection: not one refusal with a valid draft about {', '.join(empty)}; {why}")
    demonstrations = [row for rows in found.values() for row in rows[:per_group]]
    plainly = {"max_new_tokens": max_new_tokens, "progress": progress}
    plainly |= {"temperature": asking["temperature"]} if "temperature" in asking else {}
    answers = _answers(trunk, demonstrations, samples, seed=seed + 1, **plainly)
    rejected = [[*filter(None, map(whole, texts))] for texts in answers]
    helping, left = [], list(harmless)
    while left and len(helping) < len(demonstrations):
        asked, left = left[: len(demonstrations) - len(helping)], left[len(demonstrations) - len(helping) :]
        answers = _answers(trunk, asked, samples, seed=seed + 2 + len(harmless) - len(left), **plainly)
        for row, texts in zip(asked, answers, strict=True):
            if said := own_answer(texts):
                helping.append({**row, "completion": assistant_message(said), "draft": "", "refuses": False})
            else:
                reason = "no whole answer to a harmless prompt"
                left_out.setdefault(reason, []).append(max(texts, key=len))
    against = {str(row["prompt"]): row for row in _introspected(trunk, helping, ask)[0]} if helping else {}
    for row in helping:
        refusal = against.get(str(row["prompt"]))
        rejected.append([whole(text_of(refusal["completion"]))] if refusal else [])
    demonstrations += helping
    contrary = _as_many(demonstrations, without_ties(demonstrations, rejected))
    pairs = make_pairs(demonstrations, contrary, seed, origin="policy", borrowed=False)
    yields = {
        name: {
            "asked": sum(row["category"] == name for row in harmful),
            "valid": sum(row["category"] == name for row in read),
            "refuses": len(found[name]),
        }
        for name in (names if borrowed is None else ())
    }
    if yields:
        yields["all"] = {key: sum(row[key] for row in yields.values()) for key in ("asked", "valid", "refuses")}
    return ChatData(demonstrations, pairs, yields, left_out)


def _as_many(demonstrations: Sequence[Mapping], rejected: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of the answers rejected for each demonstration the first, for as many refusals as there are for help: of every
    category the first one, then of every category the second, and so on, so that none gives up all of its own."""
    places, sides = Counter(), {True: [], False: []}
    for number, row in enumerate(demonstrations):
        if rejected[number]:
            places[row["category"], row["refuses"]] += 1
            sides[row["refuses"]].append((places[row["category"], row["refuses"]], number))
    most = min(map(len, sides.values()))
    kept = {number for side in sides.values() for _, number in sorted(side)[:most]}
    return [[*texts[:1]] if number in kept else [] for number, texts in enumerate(rejected)]


def _introspected(trunk: Trunk, rows: Sequence[Mapping], ask: Mapping) -> tuple[list[dict], dict[str, list[str]]]:
    """`introspect` on rows whose prompts are what the user says alone; they come back with their own prompts."""
    bare = [{**row, "prompt": user_message(text_of(row["prompt"])), "own": row["prompt"]} for row in rows]
    read, left_out = introspect(trunk, bare, **ask)
    return [
        {key: value for key, value in row.items() if key != "own"} | {"prompt": row["own"]} for row in read
    ], left_out


def _as_introspected(rows: Sequence[Mapping]) -> tuple[list[dict], dict[str, list[str]]]:
    """Borrowed refusals as `introspect` would give them."""
    return [{**row, "draft": "", "refuses": True} for row in rows], {}


SENTENCES = re.compile(r".*[.!?][\"')\u201d\u2019`]*(?=\s|$)", re.DOTALL)


NUMBER = re.compile(r"(^|\n|(?<=[.!?])\s)\s*\d+[.)]$")


def whole(text: str) -> str:
    """A text up to the end of its last whole sentence, "" if it has none. The number of an item in a list, "2.", ends
    nothing, and goes with what was cut off behind it."""
    found = SENTENCES.match(text)
    if not found or (kept := NUMBER.sub("", found[0])) == found[0]:
        return found[0].strip() if found else ""
    return whole(kept)


def own_answer(texts: Sequence[str]) -> str | None:
    """The longest of a model's answers, in whole sentences, that neither refuses nor repeats itself: what it would be
    best to hear of it; None if there is none."""
    good = (text for text in map(whole, texts) if is_coherent(text) and not opens_with_refusal(text))
    return max(good, key=len, default=None)


def _answers(trunk: Trunk, rows: Sequence[Mapping], samples: int, **sampling) -> list[list[str]]:
    """`samples` answers to each prompt as it stands; `sampling` as of `generate`."""
    asked = [row["prompt"] for row in rows for _ in range(samples)]
    said = trunk.generate(asked, **sampling)
    return [said[start : start + samples] for start in range(0, len(said), samples)]
