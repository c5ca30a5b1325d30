"""Three public sets of labelled answers as preference pairs: one form, so that one objective can be tried on all."""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data import public_files as sources
from srmir_lib.errors import InputError

PAIR_SETS = ("hh-rlhf", "gptfuzz", "diasafety")


SIDES = ("chosen", "rejected")


class PairData(NamedTuple):
    """Pairs of three splits that share no prompt (rows of prompt, chosen, rejected: conversations), and the labelled
    answers of the test split (rows of prompt, completion, unsafe); none where people only compared answers."""

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    labelled: list[dict]

    def taught_and_tested(self, known: Collection[str] = ()) -> set[str]:
        """Answers of the test that stand in a training pair or among the `known` texts, as of `all_words`."""
        tested = sources.answer_words(self.test, SIDES) | sources.answer_words(self.labelled, ["completion"])
        return tested & (sources.answer_words(self.train, SIDES) | set(known))


def pair_loader(
    sets: Sequence[str], most: Mapping[str, int], data_dir: str | Path = "", known: Collection[str] = ()
) -> Callable[[str, int], PairData]:
    """`load(name, seed)`: the `real_pairs` of one of `sets`, at most `most[name]` for training if it is named there.

    A name that is none of `PAIR_SETS` is refused at once, before hours are spent on the others.
    """
    if wrong := [name for name in (*most, *sets) if name not in PAIR_SETS]:
        raise InputError(f"sets, most: {wrong} are not among {PAIR_SETS}")
    return lambda name, seed: real_pairs(name, data_dir, seed, most.get(name, 0), known=known)


FRACTIONS = 0.7, 0.1
"""Shares of the questions (contexts) that are for training and for validation."""


def real_pairs(
    name: str, data_dir: str | Path = "", seed: int = 0, most: int = 0, known: Collection[str] = ()
) -> PairData:
    """One of `PAIR_SETS`, with at most `most` training pairs (0: all); the seed draws what is train and what is test.

    hh-rlhf has pairs of its own, split by the dialogue's opening question. gptfuzz and diasafety have answers that
    people called safe or not: a pair is a safe and an unsafe answer to the same question (context), every answer of the
    rarer kind used once; they are split by question (context), and an answer that was called both is left out. The
    validation split is the same for every seed, so that what is chosen there never meets it in a test. Test rows whose
    prompt or answers stand in a training pair, but for case and punctuation, are left out.

    `known`: the texts that the model was made from, as of `public_sets.texts_in`. Their questions are for training
    only; of the others at most half are tested, and test rows with an answer among these texts are left out.
    """
    if name not in PAIR_SETS:
        raise InputError(f"data sets: {name!r} is none of {', '.join(PAIR_SETS)}")
    if most < 0:
        raise InputError(f"most: {most} pairs of {name}; give a number above 0, or 0 for all")
    if name == "hh-rlhf":
        rows = [row | {"group": row["prompt"][0]["content"]} for row in sources.load_hh_pairs(data_dir)[0]]
    else:
        rows = [row | {"group": row["prompt"]} for row in _labelled(name, data_dir)]
    parts, labelled = _split(rows, seed, known), []
    if name == "hh-rlhf":
        pairs = {split: [_pair(row) for row in part] for split, part in parts.items()}
    else:
        pairs = {split: _pairs_within(part, 0 if split == "validation" else seed) for split, part in parts.items()}
        labelled = [_labelled_row(row) for row in parts["test"]]
    seen = {_plain(row[key]) for row in pairs["train"] for key in ("prompt", *SIDES)}

    def is_new(row: dict, *answers: str) -> bool:
        taught = any(sources.all_words(text_of(row[side])) in known for side in answers)
        return not taught and not seen & {_plain(row[key]) for key in ("prompt", *answers)}

    test = [row for row in pairs["test"] if is_new(row, *SIDES)]
    labelled = [row for row in labelled if is_new(row, "completion")]
    random.Random(seed).shuffle(pairs["train"])
    if not (pairs["train"] and pairs["validation"] and test):
        raise InputError(f"{name}: a split without a pair; are the files complete?")
    return PairData(pairs["train"][: most or None], pairs["validation"], test, labelled)


def _labelled(name: str, data_dir: str | Path) -> list[dict]:
    """Answers that people called safe or unsafe, each once; without those they called both."""
    if name == "gptfuzz":
        rows = sources.load_gptfuzz(data_dir)
    else:  # its own splits share contexts
        rows = [row for split in ("train", "val", "test") for row in sources.load_diasafety(data_dir, split)]
    once = {(row["prompt"], row["response"], row["unsafe"]): row for row in rows if row["response"]}
    return [row for (prompt, text, unsafe), row in once.items() if (prompt, text, 1 - unsafe) not in once]


def _split(rows: Sequence[dict], seed: int, known: Collection[str]) -> dict[str, list[dict]]:
    """Train, validation and test by group; validation is the draw of seed 0, the other two are drawn by `seed`.

    A group whose name is a `known` text is always for training.
    """
    taught, free = [], []
    for row in rows:
        (taught if sources.all_words(row["group"]) in known else free).append(row)
    parts = sources.split_by_group(free, "group", FRACTIONS, 0)
    groups = sorted({row["group"] for row in parts["train"] + parts["test"]})
    random.Random(seed).shuffle(groups)
    others = len(groups) + len({row["group"] for row in taught})
    tested = min(others - round(others * FRACTIONS[0] / (1 - FRACTIONS[1])), len(groups) // 2)
    test = set(groups[len(groups) - tested :])
    rest = parts["train"] + parts["test"]
    return {
        "train": taught + [row for row in rest if row["group"] not in test],
        "validation": parts["validation"],
        "test": [row for row in rest if row["group"] in test],
    }


def _pairs_within(rows: Sequence[dict], seed: int) -> list[dict]:
    """Safe and unsafe answers to the same prompt, drawn against each other until one kind is used up."""
    draw, by_prompt = random.Random(seed), defaultdict(lambda: ([], []))
    for row in rows:
        by_prompt[row["prompt"]][row["unsafe"]].append(row["response"])
    found = []
    for prompt, (safe, unsafe) in by_prompt.items():
        draw.shuffle(safe)
        draw.shuffle(unsafe)
        pairs = zip(safe, unsafe, strict=False)
        found += [_pair({"prompt": user_message(prompt), "chosen": s, "rejected": u}) for s, u in pairs]
    return found


def _pair(row: dict) -> dict:
    return {"prompt": row["prompt"]} | {side: assistant_message(row[side]) for side in SIDES}


def _labelled_row(row: dict) -> dict:
    text = {"prompt": user_message(row["prompt"]), "completion": assistant_message(row["response"])}
    return text | {"unsafe": row["unsafe"]}


def _plain(messages: Sequence[dict]) -> str:
    """All words of a conversation or an answer, in small letters."""
    return messages[0]["role"] + " " + sources.all_words(" ".join(turn["content"] for turn in messages))
