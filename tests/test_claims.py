"""Claims against numbers worked by hand; verdicts at their edges; a claim file that is wrong is one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_notebook import run_notebook
from test_comparison import BASE as OPEN
from test_comparison import SAFE

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.evaluation.claims import Claim, claims_of_one_run, decide_claims, load_claims, overall, sentence
from srmir_lib.evaluation.over_towns import BENEATH
from srmir_lib.runner import seeds
from srmir_lib.runner.notebook import Notebook, load_values
from srmir_lib.runner.series import Runner

ROOT = Path(__file__).resolve().parents[1]
BASE = {"id": "x", "source": "s", "claim": "c", "treatment": "n/a", "control": "n/b"}


TREND = {"form": "trend", "over": {"low": 0.5, "middle": 0.7, "high": 0.9}}


def records(a, b) -> dict:
    return {seed: {"n/a": x, "n/b": y} for seed, (x, y) in enumerate(zip(a, b, strict=True), start=1)}


def decide(claim: Claim, found: dict) -> dict:
    """The row of one claim that one preset decides."""
    (row,) = decide_claims([claim], {"act": found}, ["act"])
    return row


def test_the_interval_by_hand():
    # differences .1, .3: mean .2, deviation .1 sqrt 2, t(1) = 12.706: half = 12.706 * .1 sqrt 2 / sqrt 2
    row = decide(Claim(**BASE), records([0.5, 0.8], [0.4, 0.5]))
    assert row["estimate"] == pytest.approx(0.2)
    assert [row["low"], row["high"]] == pytest.approx([0.2 - 1.2706, 0.2 + 1.2706], abs=1e-3)
    assert row["seeds"] == [1, 2] and row["world"] == "act" and row["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("differences", "options", "ends", "verdict"),
    [
        # t(4) = 2.776 at 97.5 %. Mean .3, sd sqrt(.1 / 4) = .1581, half = 2.776 * .1581 / sqrt 5 = .1963
        ([0.1, 0.2, 0.3, 0.4, 0.5], {}, (0.1037, 0.4963), "reproduced"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"smallest": 0.35}, (0.1037, 0.4963), "inconclusive"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"smallest": 0.5}, (0.1037, 0.4963), "not reproduced"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"side": "within", "bound": 0.5}, (0.1037, 0.4963), "reproduced"),
        # Mean .1, sd sqrt(.036 / 4) = .0949, half .1178: above 0 for a one-sided 5 % (t = 2.132: half .0905), not here
        ([-0.02, 0.04, 0.1, 0.16, 0.22], {}, (-0.0178, 0.2178), "inconclusive"),
        # t(2) = 4.303. Mean -.2, sd .1, half = 4.303 * .1 / sqrt 3 = .2484
        ([-0.1, -0.2, -0.3], {"side": "below"}, (-0.4484, 0.0484), "inconclusive"),
    ],
)
def test_the_rule_by_the_table_of_t(differences, options, ends, verdict):
    found = records(differences, [0.0] * len(differences))
    row = decide(Claim(**BASE, **options), found)
    assert [row["low"], row["high"]] == pytest.approx(ends, abs=2e-4) and row["verdict"] == verdict


@pytest.mark.parametrize(
    ("differences", "options", "p"),
    [
        # df 4: P(T >= 2.776) = .025, P(T >= 4.243) = .0066 (mean .3, error .1581 / sqrt 5 = .0707)
        ([0.1, 0.2, 0.3, 0.4, 0.5], {}, 0.0132),
        ([-0.1, -0.2, -0.3, -0.4, -0.5], {}, 0.0132),
        ([-0.1, -0.2, -0.3, -0.4, -0.5], {"side": "below"}, 0.0132),
        # the mean is short of what counts, .5, by 2.828 errors: P(T >= 2.828) = .0237
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"smallest": 0.5}, 0.0474),
        # within .5: the nearer end is 2.828 errors off; within .1: outside by 2.828 errors
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"side": "within", "bound": 0.5}, 0.0474),
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"side": "within", "bound": 0.1}, 0.0474),
        ([0.1, 0.1, 0.1], {}, 0.0),
        ([0.0, 0.0, 0.0], {}, 1.0),
    ],
)
def test_p_values_by_the_table_of_t(differences, options, p):
    assert Claim(**BASE, **options).p_value(differences) == pytest.approx(p, abs=2e-4)


@pytest.mark.parametrize(
    "options", [{}, {"smallest": 0.3}, {"side": "below", "bound": 0.2}, {"side": "within", "bound": 1}]
)
def test_p_is_below_five_percent_where_the_interval_decides(options):
    draw, claim = np.random.default_rng(0), Claim(**BASE, **options)
    for _ in range(300):
        row = decide(claim, records(draw.normal(draw.normal(), 0.6, 5), [0.0] * 5))
        if row["verdict"] != "inconclusive":
            assert row["p"] < 0.05
        elif not options.get("smallest"):
            assert row["p"] > 0.05


@pytest.mark.parametrize(("side", "expected"), [("above", 0.2), ("below", 0.4)])
def test_of_several_rivals_the_strongest_counts(side, expected):
    claim = Claim(**BASE | {"control": "n/sum*"}, side=side)
    found = {1: {"n/a": 0.9, "n/sum, raw": 0.7, "n/sum": 0.5, "n/other": 0.1}}
    assert claim.estimates(found) == {1: pytest.approx(expected)}
    assert claim.estimates({1: {"n/a": 0.9, "n/other": 0.1}}) == {}


def test_ratios_and_values():
    found = records([1.0, 4.0], [2.0, 2.0])
    assert Claim(**BASE, form="ratio").estimates(found) == {1: 0.5, 2: 2.0}
    assert Claim(**BASE | {"control": ""}, form="value").estimates(found) == {1: 1.0, 2: 4.0}


@pytest.mark.parametrize(
    ("options", "interval", "verdict"),
    [
        ({}, (0.01, 0.05), "reproduced"),
        ({}, (-0.01, 0.05), "inconclusive"),
        ({}, (-0.05, -0.01), "not reproduced"),
        ({"smallest": 0.1}, (0.01, 0.05), "not reproduced"),  # it ends short of what counts
        ({"smallest": 0.1}, (0.05, 0.2), "reproduced"),
        ({"smallest": 0.1}, (-0.05, 0.2), "inconclusive"),
        ({"side": "below", "bound": 0.5}, (0.3, 0.4), "reproduced"),
        ({"side": "below", "bound": 0.5}, (0.6, 0.8), "not reproduced"),
        ({"side": "below", "bound": 0.5}, (0.4, 0.6), "inconclusive"),
        ({"side": "within", "bound": 0.01}, (-0.005, 0.009), "reproduced"),
        ({"side": "within", "bound": 0.01}, (0.02, 0.03), "not reproduced"),
        ({"side": "within", "bound": 0.01}, (-0.02, 0.005), "inconclusive"),
    ],
)
def test_verdicts(options, interval, verdict):
    assert Claim(**BASE, **options).verdict(*interval) == verdict


def test_seeds_without_the_metric_do_not_count_and_one_seed_is_no_interval():
    found = records([0.5, 0.8], [0.4, 0.5]) | {3: {"n/a": 0.5}}
    row = decide(Claim(**BASE), found)
    assert row["seeds"] == [1, 2] and row["left_out"] == [3]
    row = decide(Claim(**BASE), {1: found[1]})
    assert row["verdict"] == "not measured" and row["estimate"] is None


def test_a_null_comes_out_in_about_one_of_forty():
    """Two equal treatments, five seeds: the interval lies above zero in 2.5 % of the studies, by the t quantile."""
    draw, claim = np.random.default_rng(0), Claim(**BASE)
    found = [decide(claim, records(draw.normal(size=5), draw.normal(size=5))) for _ in range(2000)]
    share = np.mean([row["verdict"] == "reproduced" for row in found])
    assert 0.015 < share < 0.035


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("claims: {}", "not a list of claims"),
        ([BASE, BASE], "x stands there more than once"),
        ([BASE | {"side": "beside"}], r"claim 1 \(x\): side"),
        ([BASE | {"form": "value"}], "a value has no control"),
        ([BASE | {"control": ""}], "a difference, ratio or trend needs one"),
        ([BASE | {"form": "trend"}], r"claim 1 \(x\): .*form trend and `over` .* need each other"),
        ([BASE | {"over": {"low": 0.5, "high": 0.9}}], "form trend and `over`"),
        ([BASE | TREND | {"over": {"low": 0.5, "high": 0.5}}], "over needs two presets at least, at different levels"),
        ([BASE | TREND | {"over": {"low": "half"}}], r"claim 1 \(x\): over.low"),
        ([BASE | TREND | {"worlds": ["towns"]}], "a trend is decided by the presets in `over`"),
        ([BASE | TREND | {"control": ""}], "trend needs one"),
        ([BASE | {"resolves": "much"}], r"claim 1 \(x\): resolves"),
        ([BASE | {"id": f"x{n}", "headline": True} for n in range(9)], "9 headlines; make it at most 8"),
        (
            [BASE | {"id": f"x{n}", "headline": True, "family": "f"} for n in range(9)],
            "9 headlines of the family f; make it at most 8",
        ),
        ([BASE | {"side": "within"}], "within needs a bound above 0"),
        ([BASE | {"side": "within", "bound": 1.0, "form": "ratio"}], "no ratio"),
        ([BASE | {"smallest": -0.1}], "smallest is a distance"),
        ([BASE | {"bound": "0.5e"}], r"claim 1 \(x\): bound"),
        ([BASE | {"weight": 3}], r"claim 1 \(x\): weight"),
        ("- [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, entries, message):
    file = tmp_path / "claims.yaml"
    file.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries), encoding="utf8")
    with pytest.raises(InputError, match=message):
        load_claims(file)


def test_the_committed_claims_can_be_read_and_one_of_them_is_a_null_run():
    claims = load_claims(ROOT / "params/claims.yaml")
    assert len(claims) >= 15 and "null_again" in {claim.id for claim in claims}
    headlines = [claim for claim in claims if claim.headline]
    assert [claim.family for claim in headlines] == [""] * 8 + ["A2 and A3"] * 4 and claims[:12] == headlines
    assert all(claim.control and (claim.smallest or claim.bound) for claim in headlines), "a control, and what counts"


def test_presets_have_the_level_that_claims_and_a6_name():
    """What a parameter file does not name has the default of 01; only the dial differs between the presets of one."""
    dials = Notebook.load(ROOT / "notebooks/A6_over_seeds.ipynb").defaults["dials"]
    first = Notebook.load(ROOT / "notebooks/01_data.ipynb")
    told = {
        world: first.parameters(load_values(ROOT / f"params/{world}/01_data.yaml"), world)
        for levels in dials.values()
        for world in levels
    }
    for dial, levels in dials.items():
        assert {world: told[world][dial] for world in levels} == levels
        for world in levels:
            others = {key: value for key, value in told[world].items() if key not in (dial, "preset")}
            assert others == {key: value for key, value in told["dial-default"].items() if key in others}
    trends = {claim.id: claim.over for claim in load_claims(ROOT / "params/claims.yaml") if claim.over}
    shuffled = trends.pop("labels_matter")
    levels = [own.items() for own in dials.values()]
    assert len(trends) == 4 and all(any(over.items() <= own for own in levels) for over in trends.values())
    right = {world: 1 - 2 * swapped for world, swapped in {"labels-shuffled": 0.5, "dial-default": 0.0}.items()}
    assert shuffled == right, "0: labels that say nothing, 1: those of introspection"


def test_the_control_of_the_labels_differs_in_them_alone():
    files = {path.name for path in (ROOT / "params/dial-default").iterdir()}
    assert files == {path.name for path in (ROOT / "params/labels-shuffled").iterdir()}
    for name in files:
        plain, control = (load_values(ROOT / "params" / world / name) for world in ("dial-default", "labels-shuffled"))
        changes = {"swapped": 0.5} if name.startswith("02") else {}
        assert control == plain | changes | {"preset": "labels-shuffled"}


def test_holm_corrects_the_headlines_and_nothing_else():
    # .1 to .5 has p = .0132 (above); two headlines and one that is not measured: .0132 * 3 = .0396, then * 2, but as
    # much at least; a fourth makes it .0528
    found = {"act": {seed: {"n/a": d, "n/b": 0.0} for seed, d in enumerate([0.1, 0.2, 0.3, 0.4, 0.5])}}
    heads = [Claim(**BASE | {"id": f"x{n}", "headline": True}) for n in range(2)]
    missing = [Claim(**BASE | {"id": f"m{n}", "headline": True, "treatment": "n/gone"}) for n in range(2)]
    plain = Claim(**BASE)
    rows = decide_claims([*heads, missing[0], plain], found, ["act"])
    assert [row["adjusted_p"] for row in rows] == [pytest.approx(0.0396, abs=5e-4)] * 2 + [None, None]
    assert [row["verdict"] for row in rows] == ["reproduced", "reproduced", "not measured", "reproduced"]
    rows = decide_claims([*heads, *missing, plain], found, ["act"])
    assert rows[0]["adjusted_p"] == pytest.approx(0.0528, abs=5e-4)
    assert [row["verdict"] for row in rows[:2]] == ["inconclusive"] * 2 and rows[-1]["verdict"] == "reproduced"


def of_towns(differences: dict[int, float]) -> dict:
    return {town: {"n/a": 0.5 + difference, "n/b": 0.5} for town, difference in differences.items()}


def test_a_trend_by_hand():
    """Levels .5, .7, .9 lie -.2, 0, .2 from their mean, so a slope is .2 (d3 - d1) / .08 = 2.5 (d3 - d1).

    Town 1: 2.5 * .12 = .3; town 2: 2.5 * .2 = .5; town 3 lacks the middle. Mean .4, deviation .2 / sqrt 2, t(1) 12.706:
    half = 12.706 * .1.
    """
    found = {
        "low": of_towns({1: 0.0, 2: -0.1, 3: 0.0}),
        "middle": of_towns({1: 0.5, 2: 0.0}),
        "high": of_towns({1: 0.12, 2: 0.1, 3: 0.4}),
        "elsewhere": of_towns({4: 1.0}),
    }
    claim = Claim(**BASE | TREND)
    assert claim.slopes(found) == {1: pytest.approx(0.3), 2: pytest.approx(0.5)}
    (row,) = decide_claims([claim], found, ["elsewhere"])
    assert (row["world"], row["seeds"], row["left_out"]) == ("low, middle, high", [1, 2], [3])
    assert [row["estimate"], row["low"], row["high"]] == pytest.approx([0.4, 0.4 - 1.2706, 0.4 + 1.2706], abs=1e-3)
    (row,) = decide_claims([claim], {"low": found["low"]}, [])
    assert row["verdict"] == "not measured" and row["left_out"] == [1, 2, 3]


def test_a_trend_is_decided_like_a_difference():
    # slopes 1, 2, 3: mean 2, error 1 / sqrt 3, t(2) = 4.303: half 2.484; slopes 2, 2.1, 2.2: half .2484
    for slopes, verdict in (((1, 2, 3), "inconclusive"), ((2.0, 2.1, 2.2), "reproduced")):
        found = {"low": of_towns(dict.fromkeys((1, 2, 3), 0.0)), "high": of_towns(dict(enumerate(slopes, start=1)))}
        (row,) = decide_claims([Claim(**BASE | TREND | {"over": {"low": 0, "high": 1}})], found, [])
        assert row["verdict"] == verdict and row["estimate"] == pytest.approx(sum(slopes) / 3)


def test_a_sentence_says_what_the_row_holds():
    claim = Claim(**BASE | {"claim": "a beats b", "smallest": 0.02, "resolves": 0.05, "headline": True})
    found = records([0.1, 0.2, 0.3, 0.4, 0.5], [0.0] * 5) | {9: {}}
    assert sentence(decide(claim, found)) == (
        "✓ x: a beats b: +0.300 [+0.104, +0.496], wanted above 0 by 0.02 or more: reproduced in 5 towns (act), p 0.013 "
        "by Holm; so many towns resolve 0.05 by the spread of development towns, 0.198 by their own; left out: 9"
    )
    assert ", p below 0.001 by Holm" in sentence(decide(claim, records([0.1, 0.1, 0.1], [0.0] * 3)))
    assert sentence(decide(claim, {})) == "– x: a beats b: not measured (act)"
    # ratios .25, .3: mean .275, deviation .05 / sqrt 2, half 12.706 * .025
    short = decide(Claim(**BASE, form="ratio", side="below", bound=0.5), records([1, 1.2], [4, 4]))
    assert sentence(short) == (
        "? x: c: as a ratio +0.275 [-0.043, +0.593], wanted below 0.5: inconclusive in 2 towns (act)"
    )


def test_each_family_is_corrected_for_itself():
    found = {"act": {seed: {"n/a": d, "n/b": 0.0} for seed, d in enumerate([0.1, 0.2, 0.3, 0.4, 0.5])}}
    heads = [Claim(**BASE | {"id": f"x{n}", "headline": True, "family": family}) for n, family in enumerate("aab")]
    assert [row["adjusted_p"] for row in decide_claims(heads, found, ["act"])] == [
        pytest.approx(2 * 0.0132, abs=5e-4),
        pytest.approx(2 * 0.0132, abs=5e-4),
        pytest.approx(0.0132, abs=5e-4),
    ]


def as_hoped(claims, reverse: bool) -> dict:
    """Made-up towns in which every headline holds; `reverse`: the same with every better policy as much the worse."""
    random, found, level = np.random.default_rng(0), {}, {"dial-introspection-low": -0.3, "dial-topic-none": 0.0}
    level |= {
        "towns": 0.2,
        "towns-a2a3": 0.2,
        "dial-default": 0.2,
        "dial-introspection-high": 0.4,
        "dial-topic-all": 0.4,
    }
    names = {control for claim in claims for control in claim.control}
    own = {claim.treatment for claim in claims}
    for world, gain in level.items():
        for town in range(110, 120):
            best = {name: 0.5 + 2 * gain + 0.01 * random.normal() for name in sorted(own - names)}  # the referee's
            mid = {name: 0.5 + gain + 0.01 * random.normal() for name in sorted(own & names)}
            rest = {name: 0.5 + 0.01 * random.normal() for name in sorted(names - own)}
            metrics = best | mid | rest
            if reverse:
                metrics = {name: 1 - value for name, value in metrics.items()}
            found.setdefault(world, {})[town] = metrics
    return found


def test_every_headline_turns_its_mark_when_the_records_are_reversed():
    headlines = [claim for claim in load_claims(ROOT / "params/claims.yaml") if claim.headline]
    marks = {
        reverse: [sentence(row)[0] for row in decide_claims(headlines, as_hoped(headlines, reverse), ["towns"])]
        for reverse in (False, True)
    }
    assert marks == {False: ["✓"] * 12, True: ["✗"] * 12}


def test_overall_needs_every_world():
    def row(verdict):
        return {"verdict": verdict, "estimate": None if verdict == "not measured" else 0.1}

    assert overall([row("reproduced"), row("reproduced")]) == "reproduced"
    assert overall([row("reproduced"), row("inconclusive")]) == "inconclusive", "no word for what no test has shown"
    assert overall([row("reproduced"), row("not reproduced")]) == "inconclusive"
    assert overall([row("not reproduced"), row("not reproduced")]) == "not reproduced"
    assert overall([row("reproduced"), row("not measured")]) == "reproduced (not measured everywhere)"
    assert overall([row("not measured")]) == "not measured"


def test_a_claim_for_one_world_is_decided_there_whatever_is_asked():
    found = {world: records([1.0, 2.0], [0.0, 0.5]) for world in ("here", "there")}
    own, free = (decide_claims([Claim(**BASE, worlds=of)], found, ["there"]) for of in (["here"], []))
    assert [row["world"] for row in own] == ["here"] and [row["world"] for row in free] == ["there"]
    (row,) = decide_claims([Claim(**BASE, worlds=["nowhere"])], found, ["there"])
    assert row["verdict"] == "not measured" and row["left_out"] == []


CLAIMS = load_claims(ROOT / "params/claims.yaml")


def of_one_run(results):
    return {claim["id"]: claim for claim in claims_of_one_run(CLAIMS, results, seed=3)}


def test_claims_take_sides_but_one_run_gives_no_verdict():
    found = of_one_run({"base": OPEN, "base, again": OPEN, "linear": OPEN, "SFT": SAFE, "categorized": SAFE})
    sums = {"categorized_over_fair_sum", "categorized_over_linear"}
    assert set(found) == {*sums, "over_sft", "jailbreaks_sft", "null_same_policy"}
    linear = found["categorized_over_linear"]
    assert (linear["estimate"], linear["low"], linear["high"]) == (0.5, 0.5, 0.5)
    assert linear["this_run"] == "for" and found["over_sft"]["this_run"] == "open"
    assert found["null_same_policy"]["this_run"] == "open", "a policy must not differ from itself"
    assert {c["verdict"] for c in found.values()} == {"inconclusive"} and linear["seeds"] == [3]


def test_a_claim_can_come_out_against():
    found = of_one_run({"categorized": OPEN, "linear": SAFE, "SFT": SAFE})
    assert found["categorized_over_linear"]["this_run"] == "against"
    assert found["jailbreaks_sft"]["this_run"] == "against" and found["jailbreaks_sft"]["estimate"] == 1.0


def test_every_sum_has_its_row_and_the_best_one_bears_the_claim():
    sums = {"linear": OPEN, "linear, own calibrated": SAFE, "linear, own raw": OPEN}
    found = claims_of_one_run(CLAIMS, {"categorized": SAFE} | sums, seed=0)
    assert [(row["id"], row["control"], row["this_run"]) for row in found] == [
        ("categorized_over_fair_sum", "linear", "for"),
        ("categorized_over_linear", "linear, own calibrated", "open"),
        ("categorized_over_linear: linear", "linear", "for"),
        ("categorized_over_linear: linear, own raw", "linear, own raw", "for"),
    ]


def test_the_best_of_several_named_rivals_bears_the_claim():
    learned = {"categorized": OPEN, "linear": SAFE, "GRPO, one model": OPEN}
    found = of_one_run({"GRPO, referee": SAFE} | learned)
    assert found["room_above"]["control"] == "linear" and found["room_above"]["this_run"] == "open"
    assert {name for name in found if name.startswith("room_above: ")} == {
        "room_above: categorized",
        "room_above: GRPO, one model",
    }


def test_every_claim_of_one_run_names_its_control_and_source():
    about = [
        claim for claim in CLAIMS if claim.treatment.startswith("06_evaluation/") and not (claim.over or claim.worlds)
    ]
    names = {name.split("/")[1] for claim in about for name in (claim.treatment, *claim.control)} - {"linear*"}
    found = of_one_run(dict.fromkeys(names, OPEN))
    assert {claim.id for claim in about} <= set(found) and len(about) == 17
    needed = {"id", "source", "claim", "measure", "estimate", "low", "high", "seeds", "control", "verdict", "note"}
    assert all(needed <= set(record) for record in found.values())
    assert not {"gain_grows_with_introspection", "no_gain_at_chance"} & set(found), "a dial or its preset decides them"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One preset with seeds, and nothing on record."""
    for name in ("notebooks", "srmir_lib", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.setenv("SRMIR_ROOT", str(tmp_path))
    return tmp_path


def over_seeds(repository) -> tuple[dict, str]:
    """Metrics of A6, and all that it printed."""
    book = run_notebook("A6_over_seeds", repository, studies=1500)
    shown = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    return read_json(repository / "outputs/lab/A6_over_seeds/metrics.json"), shown


def test_without_records_no_claim_is_decided_and_a6_says_so(repository):
    metrics, shown = over_seeds(repository)
    assert metrics["verdict_not_measured"] == len(CLAIMS) and metrics["towns/seeds"] == 0
    assert "towns: no records, so it decides no claim; run `srmir seeds towns --seeds …`" in shown
    assert "No claim is decided over towns here" in shown and "srmir seeds PRESET" in shown
    assert "The dials are not on record: dial-introspection-low, dial-default" in shown
    assert shown.count("\n– ") == len(CLAIMS), "a sentence a claim"


def test_records_of_other_parameters_decide_nothing(repository):
    for seed in (100, 101):
        record = {
            "notebook": "01_data",
            "seed": seed,
            "chain": "of old",
            "git_commit": "abc",
            "metrics": {"ceiling": 0.9},
        }
        write_json(repository / f"outputs/reference/seeds/towns/{seed}/01_data.json", record)
    metrics, shown = over_seeds(repository)
    assert metrics["towns/seeds"] == 0 and metrics["verdict_not_measured"] == len(CLAIMS)
    assert "2 records are stale (outputs/reference/seeds/towns/100/01_data.json is one)" in shown


def put_on_record(repository, found: dict) -> None:
    """The towns of `found`, as `srmir seeds` records them."""
    for world, towns in found.items():
        runner = Runner(world, repository, seed=0)
        chains, reads = seeds._chains(runner), seeds._read_with(runner)
        for town, metrics in towns.items():
            for notebook in {name.partition("/")[0] for name in metrics} & chains.keys():  # that the preset has
                own = {n.partition("/")[2]: value for n, value in metrics.items() if n.startswith(f"{notebook}/")}
                told = dict(reads[notebook])
                about = {"seed": town, "notebook": notebook, "chain": chains[notebook], "git_commit": "abc"}
                about |= {"parameters": told.pop(notebook), "reads": told, "metrics": own}
                write_json(repository / f"outputs/reference/seeds/{world}/{town}/{notebook}.json", about)


def test_a6_decides_what_is_on_record_and_draws_the_dials(repository):
    headlines = [claim for claim in CLAIMS if claim.headline]
    found = as_hoped(headlines, reverse=False)
    extra = {"base", "base, again", "DPO", "linear, own calibrated"}
    extra |= {f"categorized, {what}" for what in ("random routing", "random reward", "from base", "left out", "unseen")}
    extra |= {"SFT, voted"}
    measures = ("balanced_goodness", "utility", "attack_success_held_out_wrappers", "goodness/privacy", *BENEATH)
    ends = {f"06_evaluation/{name}/balanced_goodness": 0.5 for name in ("categorized", "start")}
    found["labels-shuffled"] = {town: ends for town in found["dial-default"]}
    for towns in found.values():
        for town, metrics in towns.items():
            known = {name.split("/")[1] for name in metrics} | extra
            flat = {f"06_evaluation/{name}/{measure}": 0.3 + town / 1000 for name in known for measure in measures}
            flat |= {name: 0.3 + town / 1000 for c in CLAIMS if c.worlds for name in (c.treatment, *c.control)}
            towns[town] = flat | metrics | {"01_data/ceiling": 0.97, "01_data/one_draft": 0.7}
    put_on_record(repository, found)
    metrics, shown = over_seeds(repository)
    assert metrics["towns/seeds"] == 10 and metrics["dial-topic-all/seeds"] == 10
    assert metrics["verdict_reproduced"] >= 8 and "none is on record" not in shown
    assert metrics["labels-shuffled/nothing_without_labels/estimate"] == 0
    assert "labels-shuffled, dial-default/labels_matter/estimate" in metrics
    for claim in headlines:
        assert f"✓ {claim.id}: {claim.claim}" in " ".join(shown.split())
    assert "better than the start is shown of none of them" in " ".join(shown.split())
    figures = {file.stem for file in (repository / "outputs/lab/A6_over_seeds/figures").glob("*.png")}
    assert figures == {"claims", "dials"}
