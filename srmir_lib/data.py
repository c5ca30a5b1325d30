"""From a pool of prompts to training data: introspect, filter, balance, pair.

No gold label is read here. What a prompt is about and whether it should be refused is what the model says when it is
asked why it would refuse (SRMIR: introspective reasoning; Cheng & Cao 2025).
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srmir_lib.artifacts import InputError
from srmir_lib.models import generate
from srmir_lib.taxonomy import CATEGORIES
from srmir_lib.templates import Draft, assistant_message, cod_prompt, parse_draft, text_of

CORRUPTIONS = ("shuffled", "truncated", "repeated", "spliced", "slurred")
PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "category", "origin", "difficulty", "harm_gap", "severity")


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
    """
    for step in reversed(draft.steps):
        words = step.lower().replace(",", " ").split()
        named = [key for key, word in category_words.items() if word.lower() in words]
        if len(named) > 1:
            raise ValueError(f"step names more than one category: {step!r}")
        if named:
            return named[0], any(word in words for word in refuse_words)
    raise ValueError("no step names a category")


def agree(
    texts: Sequence[str], category_words: Mapping[str, str], refuse_words: Sequence[str], needed: int
) -> tuple[Introspection | None, list[str]]:
    """The introspection that at least `needed` of the sampled `texts` share (or None), and why texts are invalid."""
    readings, reasons = [], []
    for text in texts:
        try:
            draft = parse_draft(text)
            readings.append((read_draft(draft, category_words, refuse_words), text, draft.answer))
        except ValueError as error:
            reasons.append(str(error).split(":")[0])
    if not readings:
        return None, reasons
    (category, refuses), votes = Counter(reading for reading, _, _ in readings).most_common(1)[0]
    if votes < needed:
        return None, [*reasons, "samples disagree"]
    text, answer = next((text, answer) for reading, text, answer in readings if reading == (category, refuses))
    return Introspection(category, refuses, text.partition("####")[0].strip(), answer), reasons


def balance(rows: Sequence[Mapping], per_group: int, seed: int, benign_ratio: float = 1.0) -> list:
    """Equal counts: of every category and verdict `per_group` rows, or as many as the smallest group has.

    `benign_ratio`: rows believed harmless per row believed harmful, where there are enough. A category without any row
    is an `InputError`: it cannot be balanced, only collected.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["category"], row["refuses"]].append(row)
    missing = [name for name in CATEGORIES if not any(name in group for group in groups)]
    if missing:
        raise InputError(f"demonstrations: no valid introspection about {', '.join(missing)}; collect more prompts")
    count = min(per_group, *(len(members) for members in groups.values()))
    wanted = {True: count, False: round(count * benign_ratio)}
    rng = random.Random(seed)
    return [row for g in sorted(groups) for row in rng.sample(groups[g], min(wanted[g[1]], len(groups[g])))]


def corrupt(text: str, how: str, rng: random.Random, other: str = "") -> str:
    """Babble made from an answer, which a reward model must score low.

    Words shuffled; cut short (every second time only just: a missing last word must cost as well); stuck in a loop;
    spliced (it goes on in the middle of `other`, another answer); slurred (two words run into one, twice).
    """
    words = text.split()
    if how == "shuffled":
        mixed = words[:]
        while len(set(words)) > 1 and mixed == words:
            rng.shuffle(mixed)
        return " ".join(mixed)
    if how == "truncated":
        most = 3 if rng.random() < 0.5 else len(words) - 1
        return " ".join(words[: max(1, len(words) - rng.randint(1, max(1, most)))])
    if how == "repeated":
        start = rng.randrange(max(1, len(words) - 2))
        return " ".join(words[: start + 2] + words[start : start + 2] * 4)
    if how == "spliced":
        rest = other.split()
        return " ".join(words[: rng.randint(1, max(1, len(words) - 1))] + rest[rng.randrange(max(1, len(rest))) :])
    if how == "slurred":
        for _ in range(min(2, len(words) - 1)):
            at = rng.randrange(len(words) - 1)
            left, right = words[at : at + 2]
            words[at : at + 2] = [left[: rng.randint(1, len(left))] + right[rng.randrange(len(right)) :]]
        return " ".join(words)
    raise InputError(f"corruption: {how!r} is none of {', '.join(CORRUPTIONS)}")


def make_pairs(demonstrations: Sequence[Mapping], samples: Sequence[Sequence[str]], seed: int) -> list[dict]:
    """Preference pairs: chosen = demonstration; rejected = what the policy says, a borrowed answer, babble.

    `samples[i]`: policy answers to the prompt of `demonstrations[i]`, under the same chat template. A sample equal to
    the demonstration makes no pair. *Borrowed* is the refusal of another prompt: for a harmless
    prompt one of its own category (over-refusal must score low), for a harmful one of another category (wrong reason).
    """
    rng = random.Random(seed)
    refusals = [demonstration for demonstration in demonstrations if demonstration["refuses"]]
    rows = []
    for number, (demonstration, answers) in enumerate(zip(demonstrations, samples, strict=True)):
        chosen = text_of(demonstration["completion"])
        rejected = [(answer, "policy") for answer in dict.fromkeys(answers) if answer.strip() not in ("", chosen)]
        donors = [o for o in refusals if (o["category"] == demonstration["category"]) != demonstration["refuses"]]
        if donors:
            rejected.append((text_of(rng.choice(donors)["completion"]), "borrowed"))
        how = CORRUPTIONS[number % len(CORRUPTIONS)]
        other = text_of(rng.choice(demonstrations)["completion"])
        rejected.append((corrupt(chosen, how, rng, other), how))
        for text, origin in rejected:
            if text != chosen:
                rows.append(
                    {
                        "prompt": demonstration["prompt"],
                        "chosen": assistant_message(chosen),
                        "rejected": assistant_message(text),
                        "category": demonstration["category"],
                        "origin": origin,
                        "difficulty": "",
                        "harm_gap": 0.0,
                        "severity": "",
                    }
                )
    return rows


def introspect(
    policy,
    tokenizer,
    prompts: Sequence[Mapping],
    category_words: Mapping[str, str],
    refuse_words: Sequence[str],
    template: str,
    samples: int,
    needed: int,
    max_new_tokens: int,
    seed: int = 0,
    progress: str | None = None,
) -> tuple[list[dict], Counter]:
    """Ask the model up to `samples` times about each prompt: rows that agree, and counts of what was left out.

    Every prompt is asked `needed` times; only where those samples do not agree, the rest of the `samples` is asked. A
    row keeps all columns of its prompt; `category` becomes the introspected one, and `refuses`, `draft` and
    `completion` are added. The collected category is kept as `collected_category`.
    """
    if not 1 <= needed <= samples:
        raise InputError(f"needed: {needed} of {samples} samples cannot agree; choose 1 to {samples}")
    questions = [cod_prompt(text_of(row["prompt"]), template) for row in prompts]
    texts: list[list[str]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for more in (needed, samples - needed):
        asked = [i for i in open_rows for _ in range(more)]
        said = generate(policy, tokenizer, [questions[i] for i in asked], max_new_tokens, seed=seed, progress=progress)
        for i, text in zip(asked, said, strict=True):
            texts[i].append(text)
        open_rows = [i for i in open_rows if agree(texts[i], category_words, refuse_words, needed)[0] is None]
        seed += 1
    rows, left_out = [], Counter()
    for row, drafts in zip(prompts, texts, strict=True):
        found, reasons = agree(drafts, category_words, refuse_words, needed)
        left_out.update(reasons)
        if found:
            said = {"category": found.category, "refuses": found.refuses, "draft": found.draft}
            completion = {"completion": assistant_message(found.answer), "collected_category": row["category"]}
            rows.append({**row, **said, **completion})
    if not rows:
        raise InputError(
            f"introspection: not one valid draft in {sum(map(len, texts))} texts ({dict(left_out.most_common(3))})"
        )
    return rows, left_out


def verdict_accuracy(rows: Sequence[Mapping]) -> dict[str, float]:
    """Shares of introspected verdicts and categories that are true; needs gold columns, never used in training."""
    verdict = [row["refuses"] == (row["kind"] == "harmful") for row in rows]
    category = [row["category"] == row["gold_topic"] for row in rows]
    return {"verdict": sum(verdict) / len(rows), "category": sum(category) / len(rows)}
