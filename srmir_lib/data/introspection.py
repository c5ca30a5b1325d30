"""From a pool of prompts to training data: introspect, filter, balance, pair.

No gold label is read here. What a prompt is about and whether it should be refused is what the model says when it is
asked why it would refuse (SRMIR: introspective reasoning; Cheng & Cao 2025).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srmir_lib.conversations import (
    as_chat,
    ask_about,
    assistant_message,
    for_each,
    is_coherent,
    opens_with_refusal,
    question_place,
    simplest,
)
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.srmir import SEPARATOR, Draft, parse_draft

REMEMBERED = 50_000
"""Drafts that an introspector remembers, give or take those of one call."""


class Introspector:
    """`Introspector(trunk, question, 24)(prompts)` -> conversations with the base model's own draft about each.

    `question` holds {prompt}; with an empty one conversations come back as they are. The question is about the last
    user message, and is asked where that message would come: behind a system message and all earlier turns, which the
    model has read by then. Drafts are greedy, so they depend on the prompt alone, and are remembered.
    """

    def __init__(self, trunk: Trunk, question: str, max_new_tokens: int):
        self.trunk, self.question, self.max_new_tokens = trunk, question, max_new_tokens
        self.drafts: dict[str, str] = {}  # prompt -> what was drafted

    def __call__(self, prompts: Sequence) -> list:
        """Prompts are user texts or conversations."""
        if not self.question:
            return list(prompts)
        drafts = self.drafts
        if len(drafts) > REMEMBERED:
            drafts.clear()
        asked = for_each(self.asked, prompts)
        keys = [str(simplest(prompt)) for prompt in prompts]
        new = {key: chat for key, chat in zip(keys, asked, strict=True) if key not in drafts}
        ask = {"temperature": 0, "until": SEPARATOR}
        said = self.trunk.generate(list(new.values()), self.max_new_tokens, **ask)
        drafts.update(zip(new, (text.partition(SEPARATOR)[0].strip() for text in said), strict=True))
        return [self.behind(prompt, drafts[key]) for prompt, key in zip(prompts, keys, strict=True)]

    def asked(self, prompt) -> list[dict]:
        """The question about a prompt, with what came before it."""
        return ask_about(prompt, self.question)

    def behind(self, prompt, draft: str) -> list[dict]:
        """The conversation with the question about its last user message, and the draft that answers it, before that
        message."""
        chat = as_chat(prompt)
        return self.asked(chat) + assistant_message(draft) + chat[question_place(chat) :]


@dataclass(frozen=True)
class Introspection:
    """What several drafts about one prompt agree on: category, verdict, and the first draft that says so."""

    category: str
    refuses: bool
    draft: str
    answer: str


def read_draft(draft: Draft, category_words: Mapping[str, str], refuse_words: Sequence[str]) -> tuple[str, bool]:
    """(category, should be refused) as the draft's last step that names a category says; a `ValueError` if none does.

    `category_words`: category key -> the word a draft calls it by; `refuse_words`: words of a verdict to refuse.
    Without `category_words` the draft is prose, as of a real model: it names no category (""), and the verdict is
    whether the answer behind it refuses; an answer that repeats itself is none.
    """
    if not category_words:
        if not is_coherent(draft.answer):
            raise ValueError("the answer repeats itself")
        return "", opens_with_refusal(draft.answer)
    for step in reversed(draft.steps):
        words = step.lower().replace(",", " ").split()
        named = [key for key, word in category_words.items() if word.lower() in words]
        if len(named) > 1:
            raise ValueError(f"step names more than one category: {step!r}")
        if named:
            return named[0], any(word in words for word in refuse_words)
    raise ValueError("no step names a category")


def agree(
    texts: Sequence[str],
    category_words: Mapping[str, str],
    refuse_words: Sequence[str],
    needed: int,
    max_words: int = 5,
) -> tuple[Introspection | None, dict[str, list[str]]]:
    """The introspection that at least `needed` of the sampled `texts` share (or None); and reason -> the texts that are
    invalid for it, of texts that disagree the first."""
    readings, bad = [], {}
    for text in texts:
        try:
            draft = parse_draft(text, max_words)
            readings.append((read_draft(draft, category_words, refuse_words), text, draft.answer))
        except ValueError as error:
            bad.setdefault(str(error).split(":")[0], []).append(text)
    if not readings:
        return None, bad
    (category, refuses), votes = Counter(reading for reading, _, _ in readings).most_common(1)[0]
    if votes < needed:
        return None, bad | {"samples disagree": [readings[0][1]]}
    text, answer = next((text, answer) for reading, text, answer in readings if reading == (category, refuses))
    return Introspection(category, refuses, text.partition("####")[0].strip(), answer), bad


def introspect(
    trunk: Trunk,
    prompts: Sequence[Mapping],
    category_words: Mapping[str, str],
    refuse_words: Sequence[str],
    template: str,
    samples: int,
    needed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    max_words: int = 5,
    examples: Sequence[Sequence[str]] = (),
    seed: int = 0,
    progress: str | None = None,
) -> tuple[list[dict], dict[str, list[str]]]:
    """Ask the model up to `samples` times about each prompt: rows that agree; and reason -> the texts left out for it.

    Every prompt is asked `needed` times; only where those samples do not agree, the rest of the `samples` is asked. A
    row keeps all columns of its prompt; `category` becomes the introspected one, if drafts name any, and `refuses`,
    `draft` and `completion` are added. The collected category is kept as `collected_category`. `examples`: pairs of a
    prompt and what is to be said of it, which stand before every question as turns of their own. `category_words`,
    `refuse_words`: as of `read_draft`; `max_words`: of a step of a draft.
    """
    if not 1 <= needed <= samples:
        raise InputError(f"needed: {needed} of {samples} samples cannot agree; choose 1 to {samples}")
    shown = [turn for prompt, said in examples for turn in ask_about(prompt, template) + assistant_message(said)]
    questions = for_each(lambda row: shown + ask_about(row["prompt"], template), prompts)
    read = {"category_words": category_words, "refuse_words": refuse_words, "needed": needed, "max_words": max_words}
    texts: list[list[str]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for more in (needed, samples - needed):
        asked = [i for i in open_rows for _ in range(more)]
        how = {"temperature": temperature, "seed": seed, "progress": progress}
        said = trunk.generate([questions[i] for i in asked], max_new_tokens, **how)
        for i, text in zip(asked, said, strict=True):
            texts[i].append(text)
        open_rows = [i for i in open_rows if agree(texts[i], **read)[0] is None]
        seed += 1
    rows, left_out = [], {}
    for row, drafts in zip(prompts, texts, strict=True):
        found, bad = agree(drafts, **read)
        for reason, said in bad.items():
            left_out.setdefault(reason, []).extend(said)
        if found:
            said = {"category": found.category or row["category"], "refuses": found.refuses, "draft": found.draft}
            completion = {"completion": assistant_message(found.answer), "collected_category": row["category"]}
            rows.append({**row, **said, **completion})
    if not rows:
        raise InputError(f"introspection: not one valid draft in {sum(map(len, texts))} texts ({counted(left_out)})")
    return rows, left_out


def counted(left_out: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many texts were left out for each reason, the most frequent first."""
    return dict(Counter({reason: len(texts) for reason, texts in left_out.items()}).most_common())


def verdict_accuracy(rows: Sequence[Mapping]) -> dict[str, float]:
    """Shares of introspected verdicts and categories that are true; needs gold columns, never used in training."""
    verdict = [row["refuses"] == (row["kind"] == "harmful") for row in rows]
    category = [row["category"] == row["gold_topic"] for row in rows]
    return {"verdict": sum(verdict) / len(rows), "category": sum(category) / len(rows)}
