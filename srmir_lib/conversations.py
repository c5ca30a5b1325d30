"""Conversations, and what a model reads of them: texts in its chat template, and tokens."""

import re
from collections.abc import Sequence

from srmir_lib.errors import InputError, RowError


def redact(text: str, show_text: bool = False, length: int = 24) -> str:
    """Hide model output on harmful prompts: its first `length` characters with every other word masked, and its size.

    The lab's text carries no know-how, so its notebooks pass `show_text=True`.
    """
    if show_text:
        return text
    words = text[:length].split()
    shown = " ".join(word if i % 2 == 0 else "▇" * len(word) for i, word in enumerate(words))
    return f"{shown} … [{len(text)} characters, redacted]"


MARK = "\ufdd0"
"""Stands inside what only looks like a special token until the text is cut there; Unicode keeps it for such uses."""


def conversation_ids(tokenizer, prompts: Sequence, completions: Sequence | None = None) -> list[list[int]]:
    """Token ids of whole conversations in the tokenizer's chat template: the very text TRL's `RewardTrainer` sees.

    Prompts are user texts or conversations, completions texts or `[assistant]` messages. Without completions each text
    ends where the answer would start. A special token that a message spells out is read as the letters it is.
    """
    return rendered_ids(tokenizer, render(tokenizer, prompts, completions))


def render(tokenizer, prompts: Sequence, completions: Sequence | None = None) -> list[str]:
    """Conversations as text in the chat template, as in `conversation_ids`; a `MARK` in every special token that a
    message spells out, so that `rendered_ids` can tell it from the template's own."""
    chats = [as_chat(prompt) for prompt in prompts]
    if completions is not None:
        if len(completions) != len(chats):
            raise InputError(f"completions: {len(completions)} for {len(chats)} prompts; give one for each")
        answers = [assistant_message(text_of(completion)) for completion in completions]
        chats = [chat + answer for chat, answer in zip(chats, answers, strict=True)]
    added = (re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = re.compile("|".join(added) or "$^")

    def marked(turn: dict) -> dict:
        return turn | {"content": special.sub(lambda found: found[0][0] + MARK + found[0][1:], turn["content"])}

    chats = [[marked(turn) for turn in chat] for chat in chats]
    options = {"tokenize": False, "add_generation_prompt": completions is None}
    return tokenizer.apply_chat_template(chats, **options) if chats else []


def rendered_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that `render` made: each is cut at its marks, and its parts are tokenized one by one."""
    parts = [text.split(MARK) for text in texts]
    flat = [part for text in parts for part in text]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    return [[token for _ in text for token in next(ids)] for text in parts]


def check_answers(responses: Sequence) -> None:
    """Refuse answers without a word: nothing can be read off them."""
    for row, response in enumerate(responses):
        if not text_of(response).strip():
            raise InputError(f"response of row {row} is empty; an answer needs a word, leave the row out")


def check_lengths(ids: Sequence[Sequence[int]], limit: int | None, more: int = 0) -> None:
    """Refuse a conversation that, with `more` tokens to come, is longer than a model reads; without a limit none is."""
    for row, tokens in enumerate(ids):
        if limit is not None and len(tokens) + more > limit:
            raise RowError(f"{len(tokens) + more} tokens of {{row}}: too many, the model reads {limit}", row)


def user_message(text: str) -> list[dict]:
    """One user turn in the conversational format of `datasets` and TRL."""
    return [{"role": "user", "content": text}]


def assistant_message(text: str) -> list[dict]:
    """One assistant turn in the conversational format of `datasets` and TRL."""
    return [{"role": "assistant", "content": text}]


def as_chat(prompt: list[dict] | str) -> list[dict]:
    """A conversation as it is, a user text as one."""
    return user_message(prompt) if isinstance(prompt, str) else list(prompt)


def text_of(messages: list[dict] | str) -> str:
    """The content of the last message, or the text itself."""
    return messages if isinstance(messages, str) else messages[-1]["content"]
