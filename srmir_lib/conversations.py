"""Texts a model is asked with: the introspective Chain-of-Draft question, its parser, and conversations.

Chain-of-Draft (Xu et al. 2025, arXiv 2502.18600): think in steps of at most five words, answer after `####`.
"""

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


def conversation_ids(tokenizer, prompts: Sequence, completions: Sequence | None = None) -> list[list[int]]:
    """Token ids of whole conversations in the tokenizer's chat template: the very text TRL's `RewardTrainer` sees.

    Prompts are user texts or conversations, completions texts or `[assistant]` messages. Without completions each text
    ends where the answer would start.
    """
    chats = [user_message(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    if completions is None:
        return _apply(tokenizer, chats, add_generation_prompt=True)
    if len(completions) != len(chats):
        raise InputError(f"completions: {len(completions)} for {len(chats)} prompts; give one for each")
    answers = [assistant_message(text_of(completion)) for completion in completions]
    return _apply(tokenizer, [chat + answer for chat, answer in zip(chats, answers, strict=True)])


def _apply(tokenizer, chats: list[list[dict]], **options) -> list[list[int]]:
    if not chats:
        return []
    return tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True, **options)["input_ids"]


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


def text_of(messages: list[dict] | str) -> str:
    """The content of the last message, or the text itself."""
    return messages if isinstance(messages, str) else messages[-1]["content"]
