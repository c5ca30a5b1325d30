"""A person's own preferences as the lab's data are: any file or folder of pairs, made what 01 writes.

Categories are those of the column `category`, whatever they are called; without it all pairs are of one category.
Imports nothing slow.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from srmir_lib.artifacts import is_dataset, load_dataset, restored
from srmir_lib.data.preferences import EQUAL, as_pair
from srmir_lib.errors import InputError
from srmir_lib.rows import rows_in
from srmir_lib.taxonomy import ALL, CATEGORIES, UNKNOWN, ordered

SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Splits, and their shares of the prompts of every category where a folder has none."""

ALIASES = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
"""What other people call them."""

FORM = re.compile(r"\.(jsonl|json|jsonl\.gz|json\.gz|parquet)$")
"""How a split's own file is called, behind its name."""

RESERVED = {"benign": "prompts that belong to no category", ALL: "the single model for everything"}
"""What these names mean elsewhere in the series."""

PAIR = ("prompt", "chosen", "rejected", "category")

FIXED = {"kind": "own", "subkind": "", "family": "none", "held_out": False, "reference": ""}
"""What nobody knows of own prompts, in the columns of the lab's."""


@dataclass(frozen=True)
class OwnPairs:
    """Pairs by split: rows of prompt, chosen, rejected (messages), category, and where they stood (`file`, `row`).

    `cut`: splits that were made here; `left_out`: rows that are not used, by reason; `problem`: why the series cannot
    run on them, in one line, or "".
    """

    source: str
    splits: dict[str, list[dict]]
    cut: list[str]
    left_out: Counter
    problem: str = ""

    @property
    def categories(self) -> list[str]:
        """Of the training pairs; "unknown" is none."""
        return [name for name in ordered(row["category"] for row in self.splits["train"]) if name != UNKNOWN]

    def only(self, wanted: Callable[[Mapping], bool], reason: str) -> "OwnPairs":
        """Those of the pairs that are `wanted`; the others are left out for the `reason`."""
        splits = {name: [row for row in rows if wanted(row)] for name, rows in self.splits.items()}
        lost = sum(map(len, self.splits.values())) - sum(map(len, splits.values()))
        problem = self.problem or (_splits_problem(splits) if lost else "")
        return replace(self, splits=splits, left_out=self.left_out + Counter({reason: lost}), problem=problem)

    def tables(self) -> dict[str, dict[str, list[dict]]]:
        """What 01 writes: the rows of its folders `preferences`, `prompts` and `demonstrations`, by split."""

        def asked(row: Mapping) -> dict:
            known = dict.fromkeys(("category", "gold_category", "gold_topic"), row["category"])
            return {"prompt": row["prompt"]} | known | FIXED

        def shown(row: Mapping) -> dict:
            return {"prompt": row["prompt"], "completion": row["chosen"], "category": row["category"]}

        def compared(row: Mapping) -> dict:
            return {name: row[name] for name in PAIR} | {"origin": "own", "difficulty": "own"}

        splits, taught = self.splits, {name: rows for name, rows in self.splits.items() if name != "test"}
        return {
            "preferences": {name: list(map(compared, rows)) for name, rows in splits.items()},
            "prompts": {name: list(map(asked, _first(rows, ("prompt",)))) for name, rows in splits.items()},
            "demonstrations": {n: list(map(shown, _first(rows, ("prompt", "chosen")))) for n, rows in taught.items()},
        }


def own_pairs(source: str | Path, seed: int = 0) -> OwnPairs:
    """`read_pairs`, of which a problem is an `InputError`."""
    pairs = read_pairs(source, seed)
    if pairs.problem:
        raise InputError(f"{source}: {pairs.problem}")
    return pairs


def read_pairs(source: str | Path, seed: int = 0) -> OwnPairs:
    """The pairs of a file of any form that `rows.rows_in` reads, of a `datasets` folder, or of a folder with a file for
    each split (train.jsonl, test.parquet, …).

    The folder's own splits are kept, and what they lack is cut from train: by prompt, so that none stands in two
    splits, drawn with the seed from every category. Equal answers, a pair that stands twice in its split, and a prompt
    that stands in an earlier one are left out, and counted. A row that is no pair is an `InputError` that names it.
    """
    names, left_out = {}, Counter()
    parts = {split or "train": list(_pairs(path, left_out, names)) for split, path in _parts(restored(source)).items()}
    splits = {name: parts[name] for name in SPLITS if name in parts}
    _without_leaks(splits, left_out)
    missing = [name for name in SPLITS if name not in splits]
    rows = [row for part in splits.values() for row in part]
    problem = _names_problem(rows) or _size_problem(splits["train"], missing)
    if not problem:
        splits |= _cut(splits["train"], missing, seed)
        splits = {name: splits[name] for name in SPLITS}
        problem = _splits_problem(splits)
    return OwnPairs(str(source), splits, missing, left_out, problem)


def prompt_key(prompt: Sequence[Mapping]) -> str:
    """What tells one prompt from another."""
    return json.dumps(prompt, sort_keys=True)


_TAXONOMY = {name.casefold(): key for key, full in CATEGORIES.items() for name in (key, full)}


def spelled_as_key(name: str) -> str:
    """A name in the letters of a key: what is neither letter, digit nor hyphen becomes an underscore."""
    return re.sub(r"[^\w-]+", "_", name).strip("_")


def _key(value: object, names: dict[str, str]) -> str:
    """The key of a category's name: as it is spelled, but the names of the taxonomy become its keys, and no name is
    `UNKNOWN`. `names`: those that were read so far, by key in small letters; one key must not stand for two."""
    if value is None or value == UNKNOWN:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, str | int) or not re.search(r"\w", str(value)):
        raise InputError(f"category is {value!r}; it must be a name, or null for none")
    name = str(value).strip()
    key = _TAXONOMY.get(name.casefold()) or spelled_as_key(name)
    if (other := names.setdefault(key.casefold(), name)) != name:
        raise InputError(f"category is {name!r}, and {other!r} elsewhere; write one name in one way")
    return key


def _parts(source: Path) -> dict[str, Path]:
    """Split -> the file or folder that holds it; a source without splits is called ""."""
    if not source.is_dir():
        return {"": source}
    if is_dataset(source):
        dataset = load_dataset(source)
        found = {name: source / name for name in dataset} if isinstance(dataset, dict) else {"": source}
    else:
        files = [path for path in sorted(source.iterdir()) if FORM.search(path.name)]
        found = {path.name.partition(".")[0]: path for path in files}
        if not found:
            load_dataset(source)  # says what it is not
    if list(found) == [""]:
        return found
    named = {ALIASES.get(name, name): path for name, path in found.items()}
    if strange := [name for name in named if name not in SPLITS]:
        fix = f"name one to use it alone: {found.get(strange[0], source)}"
        raise InputError(f"{source}: {', '.join(strange)}: none of the splits {', '.join(SPLITS)}; rename it, or {fix}")
    if len(named) < len(found):
        raise InputError(f"{source}: {', '.join(found)}: two are the same split; rename or remove one")
    if "train" not in named:
        raise InputError(f"{source}: has no split train, only {', '.join(found)}")
    return named


def _pairs(path: Path, left_out: Counter, names: dict[str, str]) -> Iterator[dict]:
    """The pairs of one split; `names` as of `_key`."""
    known, labelled = set(), None
    for number, row in rows_in(path):
        labelled = "category" in row if labelled is None else labelled
        try:
            pair = as_pair(row)
            category = _key(row.get("category"), names) if labelled else ALL
            if not labelled and "category" in row:
                raise InputError("has a category, which the first row lacks; give every row one, null for none")
        except InputError as error:
            if EQUAL in str(error):
                left_out["equal answers"] += 1
                continue
            raise InputError(f"{path}: row {number}: {error}") from error
        key = prompt_key([pair, category])
        if key in known:
            left_out["the same pair again"] += 1
            continue
        known.add(key)
        yield pair | {"category": category, "file": str(path), "row": number}


def _without_leaks(splits: dict[str, list[dict]], left_out: Counter) -> None:
    """Leave out the pairs whose prompt stands in an earlier split."""
    seen = set()
    for split, rows in splits.items():
        kept = [row for row in rows if prompt_key(row["prompt"]) not in seen]
        left_out["prompt in an earlier split"] += len(rows) - len(kept)
        seen |= {prompt_key(row["prompt"]) for row in kept}
        splits[split] = kept


def _by_prompt(rows: Iterable[dict]) -> dict[str, dict[str, list[dict]]]:
    """Category -> prompt -> its pairs; a prompt of several categories is counted to the first of them."""
    of, found = {}, {}
    for row in rows:
        key = prompt_key(row["prompt"])
        found.setdefault(of.setdefault(key, row["category"]), {}).setdefault(key, []).append(row)
    return found


def _cut(rows: list[dict], missing: Sequence[str], seed: int) -> dict[str, list[dict]]:
    """The `missing` splits, taken from the pairs of train: of every category its share, one prompt at least."""
    chosen: dict[str, str] = {}
    for category, prompts in sorted(_by_prompt(rows).items()):
        keys = list(prompts)
        random.Random(f"{seed} {category}").shuffle(keys)
        for split in missing if len(keys) > len(missing) else ():
            count = max(1, round(SPLITS[split] * len(prompts)))
            chosen |= dict.fromkeys(keys[:count], split)
            keys = keys[count:]
    parts = {split: [] for split in ("train", *missing)}
    for row in rows:
        parts[chosen.get(prompt_key(row["prompt"]), "train")].append(row)
    return parts


def _names_problem(rows: Sequence[Mapping]) -> str:
    """What is wrong with the categories."""
    found = {row["category"] for row in rows} - {UNKNOWN}
    if not rows:
        return "no pairs"
    if not found:
        return f"no pair has a category; name some, or leave the column out for a single one, {ALL!r}"
    taken = [name for name in RESERVED if name in found and (name != ALL or len(found) > 1)]
    return f"category {taken[0]!r} means {RESERVED[taken[0]]} here; call it another name" if taken else ""


def _size_problem(train: Sequence[Mapping], missing: Sequence[str]) -> str:
    """Why the missing splits cannot be cut from train."""
    counts = {name: len(prompts) for name, prompts in _by_prompt(train).items() if name != UNKNOWN}
    small = [f"{name} {count}" for name, count in sorted(counts.items()) if count <= len(missing)]
    if not small:
        return ""
    return (
        f"too few prompts in {', '.join(small)}: {len(missing) + 1} are needed to stand in train, "
        f"{' and '.join(missing)}; collect more, or give these pairs the category null"
    )


def _splits_problem(splits: Mapping[str, Sequence[Mapping]]) -> str:
    """What is wrong with splits that a folder came with."""
    trained = {row["category"] for row in splits["train"]}
    for split, rows in splits.items():
        if not rows:
            return f"split {split} has no pairs left"
        if strange := {row["category"] for row in rows} - trained - {UNKNOWN}:
            return f"split {split} has pairs of {', '.join(ordered(strange))}, of which train has none"
    return ""


def _first(rows: Iterable[Mapping], columns: Sequence[str]) -> list[Mapping]:
    """The first of the rows that agree in `columns`."""
    found = {}
    for row in rows:
        found.setdefault(prompt_key([row[name] for name in columns]), row)
    return list(found.values())
