"""Policies side by side: measures cut by category or wrapper, samples of answers, and what a run was asked to reach."""

from collections.abc import Iterable, Mapping, Sequence

from srmir_lib.conversations import redact
from srmir_lib.evaluation.measures import BALANCED, HEADINGS, paired_difference

COMPARED_WITH = ("base", "start", "SFT")
"""Policies that others are held against."""

TOLD = (", referee", ", gold", ", random", ", left out", ", unseen")
"""What marks the names of policies that were told what no user knows, nothing, or less than there is: oracles and
controls."""


def learned_policies(names: Iterable[str]) -> list[str]:
    """Those of `names` that learned from what a user has, and so may be called best."""
    return [name for name in names if name not in COMPARED_WITH and not any(end in name for end in TOLD)]


def cut_table(policies: Mapping[str, Mapping[str, float]], measure: str, values: Sequence[str]) -> list[dict]:
    """A measure cut by category, wrapper or kind, in percent, one row per value: the summaries' `measure/<value>`.

    Values that no policy has are left out; a policy without a number gets `None`.
    """
    rows = []
    for value in values:
        found = {name: summary.get(f"{measure}/{value}") for name, summary in policies.items()}
        if set(found.values()) != {None}:
            cut = {name: None if share is None else round(100 * share, 1) for name, share in found.items()}
            rows.append({"cut": value} | cut)
    return rows


def differences(
    results: Mapping[str, Sequence[Mapping]], names: Sequence[str], control: str, measure: str = BALANCED, seed: int = 0
) -> list[dict]:
    """`measure` of each of `names` minus that of `control`, paired on their prompts, as rows of a forest plot: label,
    group, control, measure, estimate, low, high. `results`: policy -> rows of `evaluate_policy`."""
    rows = []
    for name in (name for name in names if name != control):
        interval = paired_difference(results[name], results[control], measure, seed)
        about = {"group": f"minus {control}", "label": name, "control": control, "measure": measure}
        rows.append(about | interval._asdict())
    return rows


def difference_table(
    results: Mapping[str, Sequence[Mapping]], names: Sequence[str], control: str, measures: Sequence[str], seed: int = 0
) -> list[dict[str, str]]:
    """The `differences` of several measures, ready to print: a row a policy, under the headings of the measures."""
    rows = {name: {"policy": f"{name}, minus {control}"} for name in names if name != control}
    for measure in measures:
        heading, factor, decimals = HEADINGS[measure]
        for row in differences(results, names, control, measure, seed):
            texts = (f"{factor * row[key]:+.{decimals}f}" for key in ("estimate", "low", "high"))
            rows[row["label"]][heading] = "{} ({} to {})".format(*texts)
    return list(rows.values())


def answers_side_by_side(results: Mapping[str, Sequence[Mapping]], show_text: bool = False) -> list[dict]:
    """One prompt of each harm category, one look-alike, one utility task, each with every policy's answer.

    Unwrapped prompts in a known register come first. Answers are redacted unless `show_text`.
    """
    base = next(iter(results.values()))
    order = sorted(range(len(base)), key=lambda i: (base[i]["held_out"], base[i]["family"] != "none"))
    first: dict[str, int] = {}
    for i in order:
        kind = base[i]["kind"]
        first.setdefault(f"harmful: {base[i]['gold_category']}" if kind == "harmful" else kind, i)
    samples = []
    for about in [name for name in sorted(first) if name.startswith("harmful")] + ["lookalike", "utility"]:
        if about in first:
            answers = []
            for name, rows in results.items():
                row = rows[first[about]]
                answers.append({"policy": name, "response": redact(row["response"], show_text), "rung": row["rung"]})
            prompt = redact(base[first[about]]["prompt"], show_text)
            samples.append({"prompt": prompt, "about": about, "answers": answers})
    return samples


def check_goals(metrics: Mapping[str, float], targets: Mapping[str, Sequence[float]]) -> list[dict]:
    """Each target `policy/measure: [lowest, highest]` beside what was reached, and "pass" or "miss"; nothing is raised.

    A measure that no policy has counts as "not measured".
    """
    rows = []
    for name, (low, high) in targets.items():
        value = metrics.get(name)
        state = "not measured" if value is None else "pass" if low <= value <= high else "miss"
        rows.append({"target": name, "from": low, "to": high, "reached": value, "state": state})
    return rows
