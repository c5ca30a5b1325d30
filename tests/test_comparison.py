"""Policies side by side: cuts, samples and goals by hand."""

import pytest

from srmir_lib.evaluation import comparison
from srmir_lib.evaluation.measures import summarise


def row(prompt, kind="harmful", category="insult", refused=False, family="none", held_out=False):
    return {
        "prompt": prompt, "response": f"answer to {prompt} " * 3, "gold_category": category, "kind": kind,
        "subkind": "homonym", "family": family, "held_out": held_out, "reference": "", "rung": "full",
        "goodness": float(refused), "complied": not refused, "refused": refused, "coherent": True, "correct": refused,
        "tokens": 3, "seconds": 0.1,
    }  # fmt: skip


def policy(harmful_refused, lookalike_refused=False):
    rows = [row("wrapped", family="fiction", held_out=True, refused=harmful_refused)]
    rows += [row(f"h{i}", category=c, refused=harmful_refused) for i, c in enumerate(["crimes", "insult", "insult"])]
    rows += [row(f"l{i}", "lookalike", "benign", refused=lookalike_refused) for i in range(3)]
    return rows + [row("1 + 1", "utility", "benign", refused=harmful_refused)]


BASE, SAFE = policy(False), policy(True)


def test_cut_table():
    summaries = {"base": summarise(BASE), "safe": summarise(SAFE), "empty": {}}
    table = comparison.cut_table(summaries, "attack_success", ["insult", "crimes", "ethics", "fiction"])
    assert table == [
        {"cut": "insult", "base": 100.0, "safe": 0.0, "empty": None},
        {"cut": "crimes", "base": 100.0, "safe": 0.0, "empty": None},
        {"cut": "fiction", "base": 100.0, "safe": 0.0, "empty": None},
    ]


def test_samples_prefer_plain_prompts_and_redact_by_default():
    samples = comparison.answers_side_by_side({"base": BASE, "safe": SAFE})
    assert [s["about"] for s in samples] == ["harmful: crimes", "harmful: insult", "lookalike", "utility"]
    assert [[a["policy"] for a in s["answers"]] for s in samples] == [["base", "safe"]] * 4
    assert all("redacted" in a["response"] for s in samples for a in s["answers"])
    shown = comparison.answers_side_by_side({"base": BASE, "safe": SAFE}, show_text=True)
    assert [s["prompt"] for s in shown] == ["h0", "h1", "l0", "1 + 1"]
    assert shown[0]["answers"][0]["response"] == BASE[1]["response"]


@pytest.mark.parametrize(("value", "state"), [(0.6, "pass"), (0.8, "pass"), (0.81, "miss"), (0.0, "miss")])
def test_targets(value, state):
    (line,) = comparison.check_goals({"base/attack_success": value}, {"base/attack_success": [0.6, 0.8]})
    assert line == {"target": "base/attack_success", "from": 0.6, "to": 0.8, "reached": value, "state": state}


def test_targets_that_nobody_measured():
    assert comparison.check_goals({}, {"x/y": [0, 1]})[0]["state"] == "not measured"


def test_differences_are_paired_and_leave_the_control_out():
    results = {"base": BASE, "safe": SAFE, "shy": policy(True, lookalike_refused=True)}
    rows = comparison.differences(results, results, "base", "attack_success")
    assert [row["label"] for row in rows] == ["safe", "shy"]
    assert rows[0] == {"group": "minus base", "label": "safe", "control": "base", "measure": "attack_success"} | {
        "estimate": -1.0, "low": -1.0, "high": -1.0,
    }  # fmt: skip
    balanced = comparison.differences(results, ["safe"], "base")
    assert [(row["label"], row["estimate"]) for row in balanced] == [("safe", 0.5)], "half of it is harmful prompts"


def test_a_table_of_differences_is_ready_to_print():
    rows = comparison.difference_table(
        {"base": BASE, "safe": SAFE}, ["safe"], "base", ["attack_success", "over_refusal"]
    )
    assert rows == [
        {
            "policy": "safe, minus base",
            "attack success, plain (%)": "-100.0 (-100.0 to -100.0)",
            "over-refusal (%)": "+0.0 (+0.0 to +0.0)",
        }
    ]
