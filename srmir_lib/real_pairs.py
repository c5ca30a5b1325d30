"""Three public sets of judged answers as preference pairs: the same form, so that one objective can be tried on all."""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from srmir_lib import sources
from srmir_lib.artifacts import InputError
from srmir_lib.templates import assistant_message, user_message

PAIR_SETS = ("hh-rlhf", "gptfuzz", "diasafety")


class PairData(NamedTuple):
    """Pairs of three splits that share no prompt (rows of prompt, chosen, rejected: conversations), and the judged
    answers of the test split (rows of prompt, completion, unsafe); none where people only compared answers."""

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    judged: list[dict]


def real_pairs(
    name: str, data_dir: str | Path = "", seed: int = 0, most: int = 0, fractions: Sequence[float] = (0.7, 0.1)
) -> PairData:
    """One of `PAIR_SETS`, split anew for every seed, with at most `most` training pairs (0: all).

    hh-rlhf has pairs of its own, split by the dialogue's opening question. gptfuzz and diasafety have answers that
    people called safe or not: a pair is a safe and an unsafe answer to the same question (context), every answer of the
    rarer kind used once; they are split by question (context). Answers that a file repeats are taken once.
    """
    if name not in PAIR_SETS:
        raise InputError(f"data sets: {name!r} is none of {', '.join(PAIR_SETS)}")
    if name == "hh-rlhf":
        rows = [row | {"group": row["prompt"][0]["content"]} for row in sources.load_hh_pairs(data_dir)[0]]
        parts = sources.split_by_group(rows, "group", fractions, seed)
        pairs, judged = {split: [_pair(row) for row in part] for split, part in parts.items()}, []
    else:
        if name == "gptfuzz":
            rows = sources.load_gptfuzz(data_dir)
        else:
            rows = [row for split in ("train", "val", "test") for row in sources.load_diasafety(data_dir, split)]
        once = {(row["prompt"], row["response"]): row for row in rows if row["response"]}
        parts = sources.split_by_group(list(once.values()), "prompt", fractions, seed)
        pairs = {split: _pairs_within(part, seed) for split, part in parts.items()}
        judged = [
            {"prompt": user_message(row["prompt"]), "completion": assistant_message(row["response"])}
            | {"unsafe": row["unsafe"]}
            for row in parts["test"]
        ]
    random.Random(seed).shuffle(pairs["train"])
    if not all(pairs.values()):
        raise InputError(f"{name}: a split without a pair; are the files complete?")
    return PairData(pairs["train"][: most or None], pairs["validation"], pairs["test"], judged)


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
