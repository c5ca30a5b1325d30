"""Three public sets of labelled answers as preference pairs: one form, so that one objective can be tried on all."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import public_files as sources
from srmir_lib.errors import InputError

PAIR_SETS = ("hh-rlhf", "gptfuzz", "diasafety")


class PairData(NamedTuple):
    """Pairs of three splits that share no prompt (rows of prompt, chosen, rejected: conversations), and the labelled
    answers of the test split (rows of prompt, completion, unsafe); none where people only compared answers."""

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    labelled: list[dict]


def real_pairs(
    name: str, data_dir: str | Path = "", seed: int = 0, most: int = 0, fractions: Sequence[float] = (0.7, 0.1)
) -> PairData:
    """One of `PAIR_SETS`, with at most `most` training pairs (0: all); the seed draws what is train and what is test.

    hh-rlhf has pairs of its own, split by the dialogue's opening question. gptfuzz and diasafety have answers that
    people called safe or not: a pair is a safe and an unsafe answer to the same question (context), every answer of the
    rarer kind used once; they are split by question (context), and an answer that was called both is left out. The
    validation split is the same for every seed, so that what is chosen there never meets it in a test. Test rows whose
    prompt or answers stand in a training pair, but for case and punctuation, are left out.
    """
    if name not in PAIR_SETS:
        raise InputError(f"data sets: {name!r} is none of {', '.join(PAIR_SETS)}")
    if most < 0:
        raise InputError(f"most: {most} pairs of {name}; give a number above 0, or 0 for all")
    if name == "hh-rlhf":
        rows = [row | {"group": row["prompt"][0]["content"]} for row in sources.load_hh_pairs(data_dir)[0]]
    else:
        rows = [row | {"group": row["prompt"]} for row in _labelled(name, data_dir)]
    parts, labelled = _split(rows, fractions, seed), []
    if name == "hh-rlhf":
        pairs = {split: [_pair(row) for row in part] for split, part in parts.items()}
    else:
        pairs = {split: _pairs_within(part, 0 if split == "validation" else seed) for split, part in parts.items()}
        labelled = [_labelled_row(row) for row in parts["test"]]
    seen = {_plain(row[key]) for row in pairs["train"] for key in ("prompt", "chosen", "rejected")}
    test = [row for row in pairs["test"] if not seen & {_plain(row[key]) for key in ("prompt", "chosen", "rejected")}]
    labelled = [row for row in labelled if not seen & {_plain(row["prompt"]), _plain(row["completion"])}]
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


def _split(rows: Sequence[dict], fractions: Sequence[float], seed: int) -> dict[str, list[dict]]:
    """Train, validation and test by group; validation is the draw of seed 0, the other two are drawn by `seed`."""
    parts = sources.split_by_group(rows, "group", fractions, 0)
    rest = parts["train"] + parts["test"]
    groups = sorted({row["group"] for row in rest})
    random.Random(seed).shuffle(groups)
    train = set(groups[: round(len(groups) * fractions[0] / (1 - fractions[1]))])
    return {
        "train": [row for row in rest if row["group"] in train],
        "validation": parts["validation"],
        "test": [row for row in rest if row["group"] not in train],
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
    return {"prompt": row["prompt"]} | {side: assistant_message(row[side]) for side in ("chosen", "rejected")}


def _labelled_row(row: dict) -> dict:
    text = {"prompt": user_message(row["prompt"]), "completion": assistant_message(row["response"])}
    return text | {"unsafe": row["unsafe"]}


def _plain(messages: Sequence[dict]) -> str:
    """All words of a conversation or an answer, in small letters."""
    role = messages[0]["role"]
    return role + " " + " ".join(re.findall(r"\w+", " ".join(turn["content"] for turn in messages).lower()))
