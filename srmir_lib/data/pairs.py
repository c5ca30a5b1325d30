"""From what a model said of its prompts to training data: balance, pair, split (SRMIR; Cheng & Cao 2025).

No gold label is read here. What a prompt is about and whether it should be refused is what `introspection` found.
"""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from datasets import Dataset, DatasetDict

from srmir_lib.conversations import ask_about, assistant_message, for_each, opens_with_refusal, text_of
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.srmir import SEPARATOR
from srmir_lib.taxonomy import CATEGORIES

SENTENCE_ENDS = (".", "!", "?")

CORRUPTIONS = ("shuffled", "truncated", "repeated", "spliced", "slurred")

SAID = ("contrary", "policy", "own")
"""Origins of rejected answers that somebody really gave: the base model behind the contrary verdict, a policy, or
whoever is read in a person's own data."""


def balance(rows: Sequence[Mapping], per_group: int, seed: int, benign_ratio: float = 1.0) -> list:
    """Equal counts: of every category and verdict `per_group` rows, or as many as the smallest group has.

    `benign_ratio`: rows said to be harmless per row said to be harmful, where there are enough. A category without any
    row is an `InputError`: it cannot be balanced, only collected.
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

    Words shuffled; cut short within a sentence (every second time only just: a missing last word must cost as well);
    stuck in a loop; spliced (it goes on in the middle of `other`, another answer); slurred (two words run into one,
    twice).
    """
    words = text.split()
    if how == "shuffled":
        mixed = words[:]
        while len(set(words)) > 1 and mixed == words:
            rng.shuffle(mixed)
        return " ".join(mixed)
    if how == "truncated":
        most = 3 if rng.random() < 0.5 else len(words) - 1
        left = max(1, len(words) - rng.randint(1, max(1, most)))
        while left > 1 and words[left - 1] in SENTENCE_ENDS:  # a refusal without its offer is whole, and no babble
            left -= 1
        return " ".join(words[:left])
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


def make_pairs(
    demonstrations: Sequence[Mapping],
    samples: Sequence[Sequence[str]],
    seed: int,
    origin: str = "contrary",
    borrowed: bool = True,
) -> list[dict]:
    """Preference pairs: chosen = demonstration; rejected = a sampled answer, a borrowed one, babble.

    `samples[i]`: answers to the prompt of `demonstrations[i]`, under the same chat template, and whose they are
    (`origin`). A sample equal to the demonstration makes no pair. *Borrowed* is the demonstration of a prompt of
    another category and of the same verdict: the wrong reason to refuse, or help with something else (none with
    `borrowed` false: where refusals name no reason, one is as good as another). So refusals and answers are rejected
    alike, and what they have in common (their form, their length) says nothing of their worth.
    """
    rng = random.Random(seed)
    rows = []
    for number, (demonstration, answers) in enumerate(zip(demonstrations, samples, strict=True)):
        chosen, category, refuses = (demonstration[name] for name in ("completion", "category", "refuses"))
        chosen = text_of(chosen)
        rejected = [(answer, origin) for answer in dict.fromkeys(answers) if answer.strip() not in ("", chosen)]
        donors = [o for o in demonstrations if o["category"] != category and o["refuses"] == refuses]
        if borrowed and donors:
            rejected.append((text_of(rng.choice(donors)["completion"]), "borrowed"))
        how = CORRUPTIONS[number % len(CORRUPTIONS)]
        other = text_of(rng.choice(demonstrations)["completion"])
        rejected.append((corrupt(chosen, how, rng, other), how))
        unknown = {"difficulty": "", "harm_gap": 0.0, "severity": ""}
        for text, whose in rejected:
            if text != chosen:
                row = {"prompt": demonstration["prompt"], "chosen": assistant_message(chosen)}
                row |= {"rejected": assistant_message(text), "category": category, "origin": whose}
                rows.append(row | unknown)
    return rows


def contrary_pairs(
    trunk: Trunk,
    demonstrations: Sequence[Mapping],
    template: str,
    verdicts: Mapping[str, str],
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> list[dict]:
    """`make_pairs` with `samples` answers of the base model to each prompt behind its own draft with the contrary
    verdict: what it would have said, had the draft come out the other way.

    `template`: the question that the drafts answered; `verdicts`: each word of a verdict -> its contrary. Chosen and
    rejected come out of one process and differ in the verdict alone. Ties make no pair (`without_ties`), nor is there a
    contrary to a draft that holds no verdict.
    """
    reversed_drafts = [contrary(row["draft"], verdicts) for row in demonstrations]
    places = [place for place, draft in enumerate(reversed_drafts) if draft is not None for _ in range(samples)]
    asked = for_each(lambda place: ask_about(demonstrations[place]["prompt"], template), places)
    begun = [f"{reversed_drafts[place]} {SEPARATOR}" for place in places]
    answers: list[list[str]] = [[] for _ in demonstrations]
    for place, text in zip(places, trunk.generate(asked, max_new_tokens, seed=seed, beginning=begun), strict=True):
        answers[place].append(text.partition(SEPARATOR)[2].strip())
    return make_pairs(demonstrations, without_ties(demonstrations, answers), seed)


def contrary(draft: str, verdicts: Mapping[str, str]) -> str | None:
    """A draft with its last verdict reversed; None if it holds no verdict."""
    found = list(re.finditer(rf"\b({'|'.join(map(re.escape, verdicts))})\b", draft))
    if not found:
        return None
    return draft[: found[-1].start()] + verdicts[found[-1][0]] + draft[found[-1].end() :]


def without_ties(demonstrations: Sequence[Mapping], samples: Sequence[Sequence[str]]) -> list[list[str]]:
    """`samples[i]`, answers to the prompt of `demonstrations[i]`, but for ties: one that opens with a refusal where the
    demonstration refuses, or does not where it helps. Neither of the two is known to be better."""
    return [
        [text for text in texts if opens_with_refusal(text) != row["refuses"]]
        for row, texts in zip(demonstrations, samples, strict=True)
    ]


def split_tables(rows: Mapping[str, Sequence[Mapping]], columns: Sequence[str]) -> DatasetDict:
    """The `columns` of rows by split, as a `datasets` folder holds them."""
    parts = {split: [{name: row[name] for name in columns} for row in part] for split, part in rows.items()}
    return DatasetDict({split: Dataset.from_list(part) for split, part in parts.items()})
