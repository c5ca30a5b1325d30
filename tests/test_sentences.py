"""A result's sentence turns round with its numbers."""

import pytest

from srmir_lib.evaluation import sentences
from srmir_lib.statistics import Interval

HALF = 0.04


def rows(control="start", **estimates):
    return [
        {"label": name, "control": control, "estimate": value, "low": value - HALF, "high": value + HALF}
        for name, value in estimates.items()
    ]


def reversed_rows(given):
    return [row | {"estimate": -row["estimate"], "low": -row["high"], "high": -row["low"]} for row in given]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "none"),
        (["SFT"], "SFT"),
        (["SFT", "DPO", "linear"], "SFT, DPO and linear"),
        (["linear, own", "SFT", "DPO"], "linear, own; SFT and DPO"),
    ],
)
def test_names_in_a_row(names, text):
    assert sentences.joined(names) == text


def test_noise_is_measured_by_the_same_policy_twice():
    twice, given = rows(**{"base, again": 0.01, "start, again": -0.02}), rows(SFT=0.1, DPO=-0.08, linear=0.05)
    assert sentences.ruler_of(twice) == pytest.approx(0.06)
    said = sentences.about_noise(twice, given)
    assert "base, again (+0.010) and start, again (-0.020)" in said and "0.060. Outside of it, against start" in said
    assert "SFT (+0.100) above and DPO (-0.080) below; within it linear (+0.050)." in said
    turned = sentences.about_noise(twice, reversed_rows(given))
    assert "DPO (+0.080) above and SFT (-0.100) below; within it linear (-0.050)." in turned
    still = sentences.about_noise(rows(**{"start, again": 0.5}), given)
    assert "lie none above and none below" in still, "with a longer ruler nobody lies outside"


def test_differences_on_the_same_prompts():
    given = rows("SFT", router=0.1, linear=0.01, DPO=-0.2)
    assert sentences.about_differences(given) == (
        "Against SFT, prompt by prompt: better router (+0.100); worse DPO (-0.200); not told apart linear (+0.010)."
    )
    assert sentences.about_differences(reversed_rows(given)) == (
        "Against SFT, prompt by prompt: better DPO (+0.200); worse router (-0.100); not told apart linear (-0.010)."
    )


def test_the_way_to_the_ceiling():
    found = {"start": 0.5, "SFT": 0.6, "linear": 0.7}
    said = sentences.about_ceiling(found, "start", "SFT", "linear", ceiling=0.9, one_draft=0.65)
    assert said.startswith("SFT ends short of what one draft tells (0.600 against 0.650). linear, the best")
    assert said.endswith("has 0.700 of the 0.900 that acting on beliefs reaches: 50% of the way from start.")
    turned = sentences.about_ceiling({"start": 0.7, "SFT": 0.66, "linear": 0.6}, "start", "SFT", "linear", 0.9, 0.65)
    assert "beyond what one draft" in turned and "-50% of the way" in turned
    assert "no way left" in sentences.about_ceiling(found, "start", "SFT", "linear", ceiling=0.4, one_draft=0.3)


def test_the_attack_that_bites():
    rates = {"SFT": {"plain": 0.1, "forced": 0.6}, "DPO": {"plain": 0.0, "forced": 0.2}}
    said = sentences.about_attacks(rates, {"plain": 0.05, "forced": 0.07})
    assert "most often is: forced (40% over the policies, where acting on beliefs would let 7% through)" in said
    assert "least often: plain (5%)" in said and "against DPO with 20% of the prompts, against SFT with 60%." in said
    turned = {name: {"plain": of["forced"], "forced": of["plain"]} for name, of in rates.items()}
    said = sentences.about_attacks({"SFT": turned["DPO"], "DPO": turned["SFT"]}, {})
    assert "most often is: plain (40% over the policies); least often: forced (5%)" in said
    assert "against SFT with 20% of the prompts, against DPO with 60%." in said


def test_what_the_log_odds_tell_at_the_floor_of_the_rates():
    odds = {"SFT": 1.0, "DPO": 9.0, "linear": 3.0}
    said = sentences.about_floor({"SFT": 0.1, "DPO": 0.0, "linear": 0.0}, odds)
    assert "gets through to DPO and linear" in said and said.endswith("from 3.0 nats (linear) to 9.0 (DPO).")
    turned = sentences.about_floor({"SFT": 0.0, "DPO": 0.0, "linear": 0.1}, {"SFT": 9.0, "DPO": 1.0, "linear": 3.0})
    assert "gets through to SFT and DPO" in turned and turned.endswith("from 1.0 nats (DPO) to 9.0 (SFT).")
    assert "no rate is at its floor" in sentences.about_floor(dict.fromkeys(odds, 0.2), odds)


def test_knowing_more_or_refusing_more():
    areas = {"start": 0.8, "SFT": 0.81, "linear": 0.9}
    gains = {"linear": Interval(0.1, 0.05, 0.15), "SFT": Interval(0.01, -0.02, 0.04)}
    said = sentences.about_separation(areas, gains, "start")
    assert said.startswith("AUROC of start: 0.800. linear (0.900) tells forbidden from safe acts better than start")
    assert "SFT (0.810) tells forbidden from safe acts not clearly otherwise than start" in said
    turned = sentences.about_separation(areas | {"linear": 0.7}, {"linear": Interval(-0.1, -0.15, -0.05)}, "start")
    assert "linear (0.700) tells forbidden from safe acts worse than start (-0.100, -0.150 to -0.050)." in turned


def test_both_sides_of_a_claim():
    claim = {"id": "a_over_b", "treatment": "a", "control": "b", "this_run": "for"}
    assert "a (0.800) is above its strongest rival, b (0.700)" in sentences.about_claim(
        [claim], {"a": 0.8, "b": 0.7}, "a_over_b"
    )
    turned = sentences.about_claim([claim | {"this_run": "against"}], {"a": 0.7, "b": 0.8}, "a_over_b")
    assert "a (0.700) is not above" in turned and turned.endswith("speaks against the claim.")
    assert sentences.about_claim([claim], {}, "another") == ""
