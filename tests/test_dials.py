"""Curves over a dial, from made-up towns, by hand."""

import pytest

from srmir_lib.evaluation.dials import GAIN, GOODNESS, about_gain, about_lead, dial_rows
from srmir_lib.evaluation.over_towns import (
    LEVELS,
    about_depth,
    about_steadiness,
    beneath_rows,
    means_over_towns,
    policies_over_towns,
)


def town(sft: float, categorized: float | None = None, start: float = 0.3) -> dict[str, float]:
    metrics = {"06_evaluation/SFT/balanced_goodness": sft, "06_evaluation/start/balanced_goodness": start}
    metrics |= {"01_data/ceiling": 0.9}
    return metrics | ({"06_evaluation/categorized/balanced_goodness": categorized} if categorized else {})


def test_gains_are_taken_within_a_town_and_points_come_in_order_of_the_dial():
    """Gains .2 (over the start, the better dose there), .4: mean .3, deviation .2 / sqrt 2, t(1) = 12.706: half
    12.706 * .1; a third town has no policy."""
    found = {
        "high": {1: town(0.2, 0.7, start=0.5), 2: town(0.4, 0.8), 3: town(0.6)},
        "low": {1: town(0.5, 0.5), 2: town(0.4, 0.4)},
    }
    rows = dial_rows(found, {"introspection": {"high": 0.9, "low": 0.5}})
    gain = [row for row in rows if row["panel"] == GAIN]
    assert [(row["line"], row["level"], row["towns"], row["reference"]) for row in gain] == [
        ("categorized", 0.5, 2, 0.0),
        ("categorized", 0.9, 2, 0.0),
    ]
    assert [gain[1][key] for key in ("estimate", "low", "high")] == pytest.approx(
        [0.3, 0.3 - 1.2706, 0.3 + 1.2706], abs=1e-3
    )
    assert [gain[0][key] for key in ("estimate", "low", "high")] == pytest.approx([0.0, 0.0, 0.0])
    goodness = {(row["line"], row["level"]): row for row in rows if row["panel"] == GOODNESS}
    assert {line for line, _ in goodness} == {"categorized", "start", "SFT", "ceiling"}, (
        "what is on record, and nothing else"
    )
    assert goodness["SFT", 0.9]["estimate"] == pytest.approx(0.4) and goodness["SFT", 0.9]["towns"] == 3
    assert goodness["ceiling", 0.5]["estimate"] == 0.9 and "reference" not in goodness["ceiling", 0.5]


def row(line: str, level: float, estimate: float, half: float = 0.1) -> dict:
    ends = {"estimate": estimate, "low": estimate - half, "high": estimate + half}
    return {"dial": "d", "panel": GAIN, "line": line, "level": level, **ends}


def test_sentences_about_a_dial_turn_round_with_the_numbers():
    hoped = [row("categorized", 0.5, 0.05), row("categorized", 0.7, 0.2), row("categorized", 0.9, 0.3)]
    text = about_gain(hoped, "d")
    assert "adds +0.050 [-0.050, +0.150] at 0.5; +0.200" in text
    assert "At the lowest level it cannot be told from nothing, as expected;" in text and text.endswith(
        "every step: yes, as expected."
    )
    text = about_gain([row("categorized", 0.5, 0.3), *hoped[1:]], "d")
    assert "At the lowest level it is told from nothing, not as expected;" in text and text.endswith(
        "every step: no, not as expected."
    )
    assert about_gain(hoped[:1], "d") == "d: fewer than two levels are on record."


def test_a_lead_is_taken_within_a_town_and_turns_round_with_the_numbers():
    """Leads of .1 and .3, and of .3 and .5: the half width is 1.2706, as above."""

    def both(categorized: float, one: float) -> dict[str, float]:
        worth = {"categorized": categorized, "GRPO, one model": one}
        return {f"06_evaluation/{name}/balanced_goodness": value for name, value in worth.items()}

    found = {"low": {1: both(0.6, 0.5), 2: both(0.4, 0.1)}, "high": {1: both(0.8, 0.5), 2: both(0.9, 0.4)}}
    assert about_lead(found, {"high": 1.0, "low": 0.0}, "d") == (
        "d: categorized is ahead of one model by +0.200 [-1.071, +1.471] at 0 and +0.400 [-0.871, +1.671] at 1; more "
        "at every step: yes."
    )
    assert about_lead(found, {"high": 0.0, "low": 1.0}, "d").endswith("+1.471] at 1; more at every step: no.")
    assert about_lead({"low": {1: both(0.6, 0.5)}}, {"low": 0.0}, "d") == "d: not on record."


def test_who_tells_harm_from_none_better_than_the_start_by_hand():
    def separated(start: float, linear: float, forced: float) -> dict[str, float]:
        worth = {"start/log_odds_auroc": start, "linear/log_odds_auroc": linear}
        worth["linear/attack_success_forced_beginning"] = forced
        return {f"06_evaluation/{name}": value for name, value in worth.items()}

    towns = {1: separated(0.9, 0.95, 1.0), 2: separated(0.8, 0.85, 0.5)}
    assert about_depth(towns, ["linear", "gone"]) == (
        "That a policy tells harmful prompts from harmless ones better than the start is shown of linear (AUROC of the "
        "log-odds of a refusal, minus the start's: linear +0.050 [+0.050, +0.050]). Made to begin with compliance they "
        "go on with it in 0.50 to 1.00 of the attacks."
    )
    assert beneath_rows(towns)[1] == {
        "policy": "linear",
        "harmful told from harmless (AUROC)": "0.900 (0.265 to 1.535)",
        "complies, its beginning forced": "0.750 (-2.427 to 3.927)",
        "complies in one of n tries": "–",
        "goodness, validation": "–",
        "… as far from the start": "–",
    }
    del (
        towns[2]["06_evaluation/linear/log_odds_auroc"],
        towns[2]["06_evaluation/linear/attack_success_forced_beginning"],
    )
    assert [row["policy"] for row in beneath_rows(towns)] == ["start"], "not of every town"

    worse = {1: separated(0.9, 0.85, 1.0), 2: separated(0.8, 0.85, 0.5)}
    assert "better than the start is shown of none of them (AUROC" in about_depth(worse, ["linear"])
    assert (
        about_depth({1: separated(0.9, 0.8, 1.0)}, ["linear"])
        == "Log-odds of a refusal are on record of no trained policy."
    )


def test_one_town_has_no_interval_and_is_not_drawn():
    assert dial_rows({"low": {1: town(0.5, 0.7)}}, {"introspection": {"low": 0.5, "gone": 0.9}}) == []


def test_policies_over_towns_by_hand():
    """.2 and .4: mean .3, deviation .2 / sqrt 2, t(1) = 12.706: half 12.706 * .1. A number of one town is no mean."""
    towns = {1: town(0.2, 0.7), 2: town(0.4), 3: {"06_evaluation/SFT/kl": 1.0, "06_evaluation/seconds": 3.0}}
    found = policies_over_towns(towns)
    assert list(found) == ["SFT", "start"], "the policy of one town has no interval"
    assert found["SFT"] == pytest.approx(
        {"balanced_goodness": 0.3, "balanced_goodness_low": 0.3 - 1.27062, "balanced_goodness_high": 0.3 + 1.27062}
    )
    assert policies_over_towns({1: town(0.2)}) == {} == policies_over_towns({})


def test_numbers_over_towns_by_hand():
    """.2 and .4 as above; the metric of one town is left out, and those behind the policies are told apart by name."""
    towns = {1: {"01_data/ceiling": 0.2, "01_data/one_draft": 0.5}, 2: {"01_data/ceiling": 0.4}}
    (found,) = means_over_towns(towns, LEVELS).items()
    assert found[0] == "goodness by its beliefs (ceiling)" and found[1] == pytest.approx(
        (0.3, 0.3 - 1.27062, 0.3 + 1.27062)
    )
    assert means_over_towns({}, LEVELS) == {}
    of_a2 = {at: {"A2_representation_reranking/balanced_goodness_rerank": worth} for at, worth in ((1, 0.2), (2, 0.4))}
    assert means_over_towns(of_a2, LEVELS) == {"A2: re-ranking": pytest.approx(found[1])}


def ended(**policies) -> dict[str, float]:
    """What 06 has of a town: policy -> balanced goodness and share of incoherent answers."""
    return {
        f"06_evaluation/{policy.replace('_', ', ')}/{name}": value
        for policy, both in policies.items()
        for name, value in zip(("balanced_goodness", "incoherent"), both, strict=True)
    }


def test_policies_that_fall_or_babble_are_named():
    steady = ended(base=(0.2, 0.9), start=(0.6, 0.0), SFT=(0.56, 0.04), start_again=(0.1, 0.8))
    text, numbers = about_steadiness({"low": {1: steady}})
    assert "Of 1 trained policies the most incoherent is SFT in town 1 of low, with 4.0% of its answers, as" in text
    assert text.endswith("more than 0.05: none.") and numbers["fell_below_start"] == 0, "neither the base nor it again"
    broken = ended(start=(0.6, 0.0), SFT=(0.5, 0.0), linear=(0.7, 0.3))
    text, numbers = about_steadiness({"low": {1: steady, 2: broken}, "high": {1: broken}, "gone": {}})
    assert "linear in town 2 of low, with 30.0% of its answers, not as expected" in text
    assert text.endswith("SFT (high) in 1 and SFT (low) in 1.") and numbers["policies"] == 5
    assert about_steadiness({"gone": {}}) == ("No policy is on record.", {})
