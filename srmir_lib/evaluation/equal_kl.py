"""True goodness against KL: what policies are worth after equally many updates, and equally far from their reference.

After the same number of updates methods have gone different distances, and part of what parts them is speed. At equal
KL they have paid the same (Gao et al. 2023, arXiv 2210.10760).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from srmir_lib.policies.goodness import BALANCED, KL
from srmir_lib.rows import read_jsonl

UPDATES, FAR, WORTH = "updates", "KL", "goodness"


def course_of(history: Iterable[Mapping]) -> list[dict[str, float]]:
    """The looks of a history of GRPO, in order: updates made by then, KL (nats a token), balanced goodness. A row is of
    the policy that began its update, so the first one has made none."""
    looks = (row for row in history if KL in row)
    return [{UPDATES: row["step"] - 1, FAR: row[KL], WORTH: row[BALANCED]} for row in looks]


def courses_of(adapters: Mapping[str, Path | None]) -> dict[str, list[dict[str, float]]]:
    """`course_of` the histories in folders of adapters, by policy; without those at whose goodness nobody looked while
    they trained (the base model, `None`; imitation; GRPO where nobody knows the truth)."""
    histories = {name: read_jsonl(folder / "history.jsonl") for name, folder in adapters.items() if folder is not None}
    return {name: course for name, history in histories.items() if (course := course_of(history))}


def reached(course: Sequence[Mapping[str, float]], by: str, level: float) -> dict[str, float] | None:
    """Where a course first reaches a `level` of `by`, linear between two looks; None if it never does."""
    for before, after in pairwise([course[0], *course]):
        if after[by] >= level:
            way = after[by] - before[by]
            share = (level - before[by]) / way if way > 0 else 1.0
            return {key: before[key] + share * (after[key] - before[key]) for key in after}
    return None


def compare_courses(courses: Mapping[str, Sequence[Mapping[str, float]]], among: Sequence[str]) -> list[dict]:
    """A row a policy of `courses`: goodness after as many updates, and at as much KL, as all policies `among` reach.

    Keys: policy, updates, KL then and goodness then; equal KL, updates there and goodness there, the last two None
    where a policy that is not `among` never goes so far.
    """
    updates, far = (min(max(look[by] for look in courses[name]) for name in among) for by in (UPDATES, FAR))
    rows = []
    for name, course in courses.items():
        then, there = reached(course, UPDATES, updates), reached(course, FAR, far)
        row = {"policy": name, UPDATES: updates, "KL then": then and then[FAR], "goodness then": then and then[WORTH]}
        row |= {"equal KL": far, "updates there": there and there[UPDATES], "goodness there": there and there[WORTH]}
        rows.append(row)
    return rows


def as_measures(rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Policy -> goodness_at_equal_updates and goodness_at_equal_kl, of rows of `compare_courses`, where it has them."""
    names = {"goodness then": "goodness_at_equal_updates", "goodness there": "goodness_at_equal_kl"}
    return {row["policy"]: {name: row[key] for key, name in names.items() if row[key] is not None} for row in rows}
