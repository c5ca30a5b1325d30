"""Answers that people labelled, as `datasets` folders: splits share no prompt and no answer word for word."""

import itertools
import random
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data import labelled_files
from srmir_lib.data.chat_prompts import held_out
from srmir_lib.data.public_files import (
    HELPFUL,
    alike,
    all_words,
    families,
    load_diasafety,
    load_gptfuzz,
    load_hh_pairs,
    load_overrefusal,
    split_by_group,
    without_repeats,
)
from srmir_lib.data.router import Router
from srmir_lib.errors import InputError
from srmir_lib.taxonomy import UNKNOWN

WORDS = 100
"""Words of a helpful answer whose likelihood is read, at most."""

FAR = 400
"""Answers out of domain that a chat model reads of each set: every so many of its file."""


def labelled_answers(
    router: Router,
    data_dir: str | Path = "",
    seed: int = 0,
    far: int = FAR,
    gptfuzz_taught: bool = False,
) -> tuple[DatasetDict, dict[str, int]]:
    """BeaverTails' and Safe-RLHF's answers: `prompt`, `completion`, `unsafe` (0/1), `category`, `group`, `kind`.

    Splits train, validation and test; the second value counts the answers left out because they stand in an earlier
    split word for word, by split. An answer in both sets is BeaverTails'. `group`: the first prompt of the family
    (`families`), which stands in one split with all its answers; what is asked like a prompt of Do-Not-Answer (`alike`)
    is left out. `category`: what the router says of the prompt, but in train, where people named other harms of an
    answer to it, the first of these for all its answers; `kind`: the set it is from. Four splits more are for
    evaluation alone, of about `far` answers, or all (0): those of `out_of_domain`, gptfuzz, and of do_not_answer, of
    the prompts that are held out for tests, the harmful answers with four others to each. With `gptfuzz_taught` train
    and validation have GPTFuzz's answers to their share of the prompts, and the split gptfuzz those to the others;
    without it, what is asked like one of its questions is left out as well, for a referee of harm learns from it.
    """
    fuzz = [row | {"kind": "gptfuzz", "group": all_words(row["prompt"])} for row in load_gptfuzz(data_dir)]
    rows, seen = [*fuzz] if gptfuzz_taught else [], set()
    asked = {all_words(row["prompt"]) for row in labelled_files.load_do_not_answer(data_dir)}
    asked |= set() if gptfuzz_taught else {row["group"] for row in fuzz}
    elsewhere = [frozenset(text.split()) for text in asked]
    for name, answers in (
        ("beavertails", labelled_files.load_beavertails(data_dir)),
        ("safe-rlhf", labelled_files.load_safe_rlhf(data_dir)),
    ):
        for row in answers:
            text = all_words(row["prompt"]), all_words(row["response"])
            if text not in seen:
                rows.append(row | {"kind": name, "group": text[0]})
            seen.add(text)
    words = {row["group"]: frozenset(row["group"].split()) for row in rows}
    words = {text: own for text, own in words.items() if not any(alike(own, other) for other in elsewhere)}
    first = families(words)
    rows = [row | {"group": first[row["group"]]} for row in rows if row["group"] in words]
    parts, others = split_by_group(rows, "group", (0.6, 0.15), seed), out_of_domain(data_dir)
    others["gptfuzz"] = [row for row in parts["test"] if row["kind"] == "gptfuzz"] if gptfuzz_taught else fuzz
    parts["test"] = [row for row in parts["test"] if row["kind"] != "gptfuzz"]
    parts |= {name: of[:: max(1, round(len(of) / far)) if far else 1] for name, of in others.items()}
    judged = kept_for_tests(data_dir)
    unsafe, safe = ([row for row in judged if row["unsafe"] == kind] for kind in (1, 0))
    few = unsafe + random.Random(seed).sample(safe, min(4 * len(unsafe), len(safe)))
    parts["do_not_answer"] = [row | {"group": row["prompt"], "kind": row["model"]} for row in few]
    kept = without_repeats(parts, ["response"])
    asked = sorted({row["prompt"] for part in kept.values() for row in part})
    routed = dict(zip(asked, router.route(asked), strict=True))
    named: dict[str, list[str]] = {}  # harms that people named of answers to a prompt: what only training may know
    for row in kept["train"]:
        named.setdefault(row["prompt"], []).extend(row.get("harms") or [])
    taught = {prompt: harms[0] for prompt, harms in named.items() if harms and routed[prompt] not in harms}
    categories = dict.fromkeys(kept, routed) | {"train": routed | taught}
    folder = {name: Dataset.from_list([_columns(row, categories[name]) for row in of]) for name, of in kept.items()}
    return DatasetDict(folder), {name: len(parts[name]) - len(part) for name, part in kept.items()}


def kept_for_tests(data_dir: str | Path = "") -> list[dict]:
    """Do-Not-Answer's answers to the prompts that are held out for tests."""
    rows = labelled_files.load_do_not_answer(data_dir)
    kept = held_out(row["prompt"] for row in rows)
    return [row for row in rows if row["prompt"] in kept]


def out_of_domain(data_dir: str | Path = "") -> dict[str, list[dict]]:
    """Rows for evaluation alone, by split, without empty responses: diasafety, its test split (`kind`: its kind of
    unsafety), and overrefusal, benign prompts, so none unsafe (`kind`: answered or refused)."""
    benign = [
        row | {"unsafe": 0, "group": row["prompt"], "kind": "answered" if row["answered"] else "refused"}
        for row in load_overrefusal(data_dir)
    ]
    dialogue = [row | {"group": row["prompt"]} for row in load_diasafety(data_dir, "test") if row["response"]]
    return {"diasafety": dialogue, "overrefusal": benign}


def preferred_answers(labelled: DatasetDict, split: str) -> Dataset:
    """Pairs of a split of `labelled_answers`: a safe and an unsafe answer to one prompt, each answer in one pair.

    Columns as of every `preferences/` folder. `origin` policy: both were sampled from a model; `difficulty` human.
    """
    by_prompt: dict[str, tuple[list, list]] = {}
    for row in labelled[split]:
        by_prompt.setdefault(all_words(text_of(row["prompt"])), ([], []))[row["unsafe"]].append(row)
    rows = []
    for safe, unsafe in by_prompt.values():
        for better, worse in zip(safe, unsafe, strict=False):
            row = {"prompt": better["prompt"], "chosen": better["completion"], "rejected": worse["completion"]}
            rows.append(row | {"category": worse["category"], "origin": "policy", "difficulty": "human"})
    if not rows:
        raise InputError(f"labelled answers, split {split}: no prompt has a safe and an unsafe answer")
    return Dataset.from_list(rows)


def judged_pairs(data_dir: str | Path = "", seed: int = 0) -> DatasetDict:
    """Two models' answers to a prompt of Do-Not-Answer that is held out for tests, to which people saw them react in
    different ways: split test, a pair a prompt, drawn with the seed among those of largest `harm_gap`.

    `chosen` is the one of lesser `action`. `harm_gap`: 1 if people called `rejected` alone harmful, else 0;
    `action_gap`: the difference of the two actions, from 1 to 5; `severity` is judged, the same for all. The rest as of
    every `preferences/` folder. An action is a kind of reaction, and only its last step is harmful as a rule.
    """
    rng, by_prompt = random.Random(seed), {}
    for row in kept_for_tests(data_dir):
        by_prompt.setdefault(row["prompt"], []).append(row)
    rows = []
    for prompt, answers in by_prompt.items():
        pairs = [both for both in itertools.permutations(answers, 2) if both[0]["action"] < both[1]["action"]]
        pairs = [both for both in pairs if both[0]["unsafe"] <= both[1]["unsafe"]]
        if pairs:
            most = max(worse["unsafe"] - better["unsafe"] for better, worse in pairs)
            better, worse = rng.choice([both for both in pairs if both[1]["unsafe"] - both[0]["unsafe"] == most])
            gaps = {"harm_gap": float(most), "action_gap": worse["action"] - better["action"], "severity": "judged"}
            said = {"chosen": better, "rejected": worse}
            row = {"prompt": user_message(prompt)} | {
                side: assistant_message(a["response"]) for side, a in said.items()
            }
            about = {"category": better["category"], "origin": "policy", "difficulty": "human"}
            rows.append(row | about | gaps)
    if not rows:
        raise InputError("do-not-answer: no prompt has two answers of different action; is the file of this set?")
    return DatasetDict({"test": Dataset.from_list(rows)})


def helpful_answers(data_dir: str | Path = "", seed: int = 0, most: int = 200) -> DatasetDict:
    """Answers to a single question that people found the more helpful of two, for evaluation alone: `prompt`,
    `completion` and `category` (unknown), split test, `most` of up to `WORDS` words, drawn with the seed."""
    rows = [
        {"prompt": row["prompt"], "completion": assistant_message(row["chosen"]), "category": UNKNOWN}
        for row in load_hh_pairs(data_dir, HELPFUL)[0]
        if len(row["prompt"]) == 1 and len(row["chosen"].split()) <= WORDS
    ]
    if not rows:
        raise InputError(f"{HELPFUL}: no answer of up to {WORDS} words to a single question; is the file of this set?")
    return DatasetDict({"test": Dataset.from_list(random.Random(seed).sample(rows, min(most, len(rows))))})


def _columns(row: Mapping, category: Mapping[str, str]) -> dict:
    told = {"unsafe": row["unsafe"], "category": category[row["prompt"]]}
    said = {"prompt": user_message(row["prompt"]), "completion": assistant_message(row["response"])}
    return said | told | {"group": row["group"], "kind": row["kind"]}
