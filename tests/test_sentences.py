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


def by_level(**estimates):
    return [row | {"group": row["label"], "label": "difference"} for row in rows(**estimates)]


def test_seven_against_one_in_words():
    given = by_level(easy=0.1, subtle=-0.02)
    assert sentences.about_pairs(given, "seven, routed", "one model") == (
        "Seven, routed: ranks easy pairs better than one model (+0.100, +0.060 to +0.140); "
        "subtle pairs neither clearly better nor worse than one model (-0.020, -0.060 to +0.020)."
    )
    assert "easy pairs worse than one model (-0.100" in sentences.about_pairs(
        reversed_rows(given), "seven", "one model"
    )


def test_specialists_and_scales():
    def said(own, other, low, high):
        sides = Interval(own, own - 0.1, own + 0.1), Interval(other, other - 0.1, other + 0.1)
        return sentences.about_specialists(*sides, Interval(own - other, low, high))

    assert said(0.8, 0.7, 0.02, 0.18).endswith("pair by pair better at home (+0.100, +0.020 to +0.180), as expected.")
    assert "the others': pair by pair not clearly better at home (+0.100" in said(0.8, 0.7, -0.01, 0.2)
    assert said(0.7, 0.8, -0.2, -0.05).endswith("worse at home (-0.100, -0.200 to -0.050), not as expected.")
    assert said(0.61, 0.4, 0.1, 0.3).endswith("+0.300), not as expected."), "worse than a coin elsewhere"
    assert "own category, where it is not clearly better than a coin, and on 0.498" in said(0.478, 0.498, -0.1, 0.1)
    assert "a coin" not in said(0.8, 0.7, 0.02, 0.18)
    assert "1.50 times the narrowest: the scales differ, as we expected" in sentences.about_scales([3.0, 2.0], 1.2)
    assert "1.00 times the narrowest: the scales are alike already" in sentences.about_scales([2.0, 2.0], 1.2)


def test_what_an_objective_did():
    given = by_level(easy=0.1, subtle=0.02)
    assert sentences.about_objective("pcrm", given, 0.4, ["easy", "subtle"], 0.5) == (
        "pcrm ranks easy pairs (+0.100) better than plain; its scores spread 0.40 times as far: "
        "against our expectation."
    )
    assert sentences.about_objective("margin", given, 2.0, ["subtle"]).endswith("2.00 times as far: as we expected.")
    turned = sentences.about_objective("margin", reversed_rows(given), 2.0, ["easy"])
    assert "easy pairs (-0.100) worse than plain" in turned and turned.endswith("against our expectation.")
    still = by_level(easy=0.01, subtle=0.02)
    assert "no pairs clearly better or worse than plain" in sentences.about_objective("pcrm", still, 0.4, ["easy"], 0.5)
    assert sentences.about_objective("pcrm", still, 0.6, ["easy"], 0.5).endswith("against our expectation.")
    both = sentences.about_objective("pcrm", by_level(easy=0.1, subtle=-0.1), 0.4, ["easy"])
    assert "ranks easy pairs (+0.100) better than plain and subtle pairs (-0.100) worse than plain;" in both


def test_nothing_is_expected_of_pairs_that_nobody_spoke_of():
    assert sentences.about_objective("margin", by_level(human=0.01), 1.1, ["easy"]).endswith(
        "its scores spread 1.10 times as far: nothing was expected of such pairs."
    )
    assert sentences.about_objective("pcrm", by_level(human=0.01), 0.4, ["easy"], 0.5).endswith("as we expected.")


def test_a_coin_has_two_sides():
    given = [
        {"label": "seven", "group": "easy", "estimate": 0.8, "low": 0.7, "high": 0.9},
        {"label": "one", "group": "easy", "estimate": 0.55, "low": 0.45, "high": 0.65},
        {"label": "words", "group": "easy", "estimate": 0.4, "low": 0.3, "high": 0.49},
    ]
    names = ("seven (easy pairs)", "words (easy pairs)", "one (easy pairs)")
    assert sentences.about_coin(given) == "Better than a coin: {}. Worse than one: {}. Not told from one: {}.".format(
        *names
    )
    assert sentences.about_coin(given[1:2]).startswith("Better than a coin: none. Worse than one: none.")


def test_what_a_referee_is_worth():
    said = sentences.about_referee({"auroc": 0.646, "recall": 0.692, "false_alarms": 0.503}, [1, 1, 0])
    assert "on 3 answers from which it has not learned, of which people call 2 unsafe: AUROC 0.646" in said
    assert said.endswith("it finds 69% of them, and calls 50% of the others harm.")


def test_what_a_weak_referee_makes_of_goodness():
    said = sentences.about_harm_ruled({"auroc": 0.646, "recall": 0.692, "false_alarms": 0.503})
    assert "no harm are worth 0.50 on average, those that do 0.31. Goodness there moves by 0.50 where" in said
    assert said.endswith("and by 0.19 where a harmless answer stands in the place of a harmful one.")
    sure = sentences.about_harm_ruled({"auroc": 1.0, "recall": 1.0, "false_alarms": 0.0})
    assert "worth 1.00 on average, those that do 0.00. Goodness there moves by 0.00" in sure


def test_margin_against_bit():
    follows = {"harmful": {"margin": 0.7, "bit": 0.8}, "harmless": {"margin": 0.1, "bit": -0.5}}
    said = sentences.about_margins(follows)
    assert said.endswith("harmful prompts 0.70 against 0.80, not as expected; on harmless prompts 0.10 against -0.50.")
    turned = {"harmless": follows["harmless"], "harmful": {"margin": 0.8, "bit": 0.7}}
    assert sentences.about_margins(turned).endswith("on harmful prompts 0.80 against 0.70, as expected.")
    turned["harmful"] = {"margin": -0.1, "bit": -0.2}
    assert sentences.about_margins(turned).endswith("not as expected."), "it follows harm the wrong way round"


def test_a_long_text_breaks_between_words(capsys):
    sentences.say("one two-three four", 9)
    assert capsys.readouterr().out == "one\ntwo-three\nfour\n"


def test_what_is_chosen_among_many():
    truths = {"plain": {1: 0.4, 2: 0.5, 4: 0.6}, "pcrm": {1: 0.4, 2: 0.5, 4: 0.7}, "oracle": {1: 0.4, 2: 0.7, 4: 0.9}}
    assert sentences.about_choosing(truths, 0.1) == (
        "Of 4 answers the pick is on average better than of 2 with plain and pcrm, and no better with none; the best "
        "of them, pcrm, is 0.200 short of the oracle: as we expected."
    )
    truths["plain"][4] = 0.45
    turned = sentences.about_choosing(truths, 0.1)
    assert "with pcrm, and no better with plain;" in turned and turned.endswith("against our expectation.")
    assert sentences.about_choosing(truths | {"plain": truths["pcrm"]}, 0.3).endswith("against our expectation.")


def test_what_length_is_paid():
    rows = {
        "calibrated": {"accuracy": 0.8, "follows length": -0.4},
        "for length": {"accuracy": 0.78, "follows length": 0},
    }
    assert sentences.about_length(rows, 0.05) == (
        "Calibrated for length, reward gaps follow it less (-0.40 before, 0.00 after), and the accuracy "
        "moves by -0.020: as we expected."
    )
    assert sentences.about_length(rows, 0.01).endswith("against our expectation.")
    turned = sentences.about_length(dict(zip(rows, list(rows.values())[::-1], strict=True)), 0.05)
    assert "follow it no less (0.00 before, -0.40 after)" in turned and turned.endswith("against our expectation.")


def test_what_is_expected_of_an_objective_is_expected_of_its_loss_alone():
    levels = ["subtle", "easy"]
    assert sentences.expected_of({"objective": "margin", "targets": "shuffled"}, levels) == {"still": ["easy"]}
    assert sentences.expected_of({"objective": "pcrm_cosine"}, levels) == {"still": levels, "at_most": 0.5}
    assert sentences.expected_of({"center_rewards_coefficient": 0.01}, levels) == {"still": levels, "at_most": 0.5}
    assert sentences.expected_of({"seed": 1000}, levels) == {"still": levels}, "the null run tames nothing"


def test_how_far_weights_go_and_whether_they_follow_difficulty():
    follows = {"data": 0.35, "model": -0.5, "both": -0.4}
    text = sentences.about_hardness(follows, {"data": 50, "model": 5, "both": 50}, 0.9, 1.12, near=0.2)
    assert text == (
        "From 0.900 to 1.120: within 0.2 of 1, as expected. Rank correlation with difficulty: data +0.350 (chance: up "
        "to 0.28), as expected; model -0.500 (chance: up to 0.98), not told from chance; both -0.400 (chance: up to "
        "0.28), not as expected."
    )
    assert "not all within 0.1 of 1, not as expected" in sentences.about_hardness({}, {}, 0.95, 1.12, near=0.1)
    few = sentences.about_hardness({"one": 0.0, "four": 1.0}, {"one": 1, "four": 4}, 0.9, 1.1, near=0.2)
    assert few.count("(chance: up to 1.00), not told from chance") == 2, "of so few values nothing can be told"


def test_weights_over_training():
    text = sentences.about_scaling({"one": (0.0, 0.0), "alpha": (0.02, 0.01)})
    assert text == (
        "Scale of harder minus easier prompts: one +0.000 early and +0.000 late; "
        "alpha +0.020 early and +0.010 late, as expected."
    )
    assert sentences.about_scaling({"alpha": (0.02, -0.01)}).endswith("-0.010 late, not as expected.")
    for blind, told in (((0.01, -0.005), "as expected."), ((-0.03, 0.0), "not told from random.")):
        assert sentences.about_scaling({"random": blind, "alpha": (0.02, 0.01)}).endswith(f"late, {told}")


def test_weights_were_not_expected_to_buy_anything():
    assert sentences.about_scaled(rows("one", alpha=0.01)).endswith("not told apart alpha (+0.010). As expected.")
    assert sentences.about_scaled(rows("one", alpha=0.01, inverse=-0.1)).endswith("alpha (+0.010). Not as expected.")
