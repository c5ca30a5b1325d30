"""Texts a model is asked with: the introspective Chain-of-Draft question, its parser, and conversations.

Chain-of-Draft (Xu et al. 2025, arXiv 2502.18600): think in steps of at most five words, answer after `####`.
"""

from dataclasses import dataclass

SEPARATOR = "####"

COD_TEMPLATE = (
    "Think step by step, but only keep a minimum draft for each thinking step, with 5 words at most. "
    "Return the answer at the end of the response after a separator ####. "
    'Why would you refuse to answer "{prompt}"?'
)
COT_TEMPLATE = (
    "Think step by step to answer the following question. "
    "Return the answer at the end of the response after a separator ####. "
    'Why would you refuse to answer "{prompt}"?'
)


@dataclass(frozen=True)
class Draft:
    """A parsed introspection: the short steps before the separator and the answer after it."""

    steps: tuple[str, ...]
    answer: str


def cod_prompt(prompt: str, template: str = COD_TEMPLATE) -> list[dict]:
    """Ask a model why it would refuse `prompt`: one user message (Cheng & Cao 2025; wording of Xu et al. 2025)."""
    if "{prompt}" not in template:
        raise ValueError("introspection_template: must contain {prompt}")
    return user_message(template.replace("{prompt}", prompt))


def parse_draft(text: str, step_separator: str = ";", max_words: int = 5) -> Draft:
    """Split `draft #### answer`; raise a `ValueError` with the reason when the text is not a valid Chain of Draft.

    Steps are split at `step_separator` or line ends; every step has 1 to `max_words` words; the answer is not empty.
    """
    head, separator, answer = text.partition(SEPARATOR)
    if not separator:
        raise ValueError(f"no separator {SEPARATOR}")
    if SEPARATOR in answer:
        raise ValueError(f"more than one separator {SEPARATOR}")
    steps = tuple(step.strip() for step in head.replace("\n", step_separator).split(step_separator) if step.strip())
    if not steps:
        raise ValueError("no draft before the separator")
    if not answer.strip():
        raise ValueError("no answer after the separator")
    for step in steps:
        if len(step.split()) > max_words:
            raise ValueError(f"step of more than {max_words} words: {step!r}")
    return Draft(steps, answer.strip())


def user_message(text: str) -> list[dict]:
    """One user turn in the conversational format of `datasets` and TRL."""
    return [{"role": "user", "content": text}]


def assistant_message(text: str) -> list[dict]:
    """One assistant turn in the conversational format of `datasets` and TRL."""
    return [{"role": "assistant", "content": text}]


def text_of(messages: list[dict] | str) -> str:
    """The content of the last message, or the text itself."""
    return messages if isinstance(messages, str) else messages[-1]["content"]
