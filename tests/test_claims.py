"""Claims against numbers worked by hand; verdicts at their edges; a claim file that is wrong is one line."""

import shutil
from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from test_comparison import BASE as OPEN
from test_comparison import SAFE

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.evaluation.claims import Claim, claims_of_one_run, decide_claims, load_claims, overall

ROOT = Path(__file__).resolve().parents[1]
BASE = {"id": "x", "source": "s", "claim": "c", "treatment": "n/a", "control": "n/b"}


def records(a, b) -> dict:
    return {seed: {"n/a": x, "n/b": y} for seed, (x, y) in enumerate(zip(a, b, strict=True), start=1)}


def test_the_interval_by_hand():
    # differences .1, .3: mean .2, deviation .1 sqrt 2, t(1) = 12.706: half = 12.706 * .1 sqrt 2 / sqrt 2
    (row,) = decide_claims([Claim(**BASE)], records([0.5, 0.8], [0.4, 0.5]), "act")
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
    (row,) = decide_claims([Claim(**BASE, **options)], found)
    assert [row["low"], row["high"]] == pytest.approx(ends, abs=2e-4) and row["verdict"] == verdict


def test_what_the_lab_plants_reproduces_nothing():
    found = records([0.1, 0.2, 0.3, 0.4, 0.5], [0.0] * 5)
    assert [decide_claims([Claim(**BASE, planted=planted)], found)[0]["verdict"] for planted in (False, True)] == [
        "reproduced",
        "planted",
    ]
    planted = {claim.id for claim in load_claims(ROOT / "params/claims.yaml") if claim.planted}
    assert planted == {"draft_is_short"}, "the corpus writes drafts short"


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
    (row,) = decide_claims([Claim(**BASE)], found)
    assert row["seeds"] == [1, 2]
    (row,) = decide_claims([Claim(**BASE)], {1: found[1]})
    assert row["verdict"] == "not measured" and row["estimate"] is None


def test_a_null_comes_out_in_about_one_of_forty():
    """Two equal treatments, five seeds: the interval lies above zero in 2.5 % of the studies, by the t quantile."""
    draw, claim = np.random.default_rng(0), Claim(**BASE)
    found = [decide_claims([claim], records(draw.normal(size=5), draw.normal(size=5)))[0] for _ in range(2000)]
    share = np.mean([row["verdict"] == "reproduced" for row in found])
    assert 0.015 < share < 0.035


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("claims: {}", "not a list of claims"),
        ([BASE, BASE], "x stands there more than once"),
        ([BASE | {"side": "beside"}], r"claim 1 \(x\): side"),
        ([BASE | {"form": "value"}], "a value has no control"),
        ([BASE | {"control": ""}], "a difference or ratio needs one"),
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


def test_overall_needs_every_world():
    def row(verdict):
        return {"verdict": verdict, "estimate": None if verdict == "not measured" else 0.1}

    assert overall([row("reproduced"), row("reproduced")]) == "reproduced"
    assert overall([row("reproduced"), row("inconclusive")]) == "inconclusive", "no word for what no test has shown"
    assert overall([row("reproduced"), row("not reproduced")]) == "inconclusive"
    assert overall([row("not reproduced"), row("not reproduced")]) == "not reproduced"
    assert overall([row("reproduced"), row("not measured")]) == "reproduced (not measured everywhere)"
    assert overall([row("not measured")]) == "not measured"


def test_a_claim_for_one_world_is_not_made_in_another():
    claim = Claim(**BASE, worlds=["here"])
    found = {world: decide_claims([claim], records([1.0, 2.0], [0.0, 0.5]), world) for world in ("here", "there")}
    assert [row["world"] for row in found["here"]] == ["here"] and found["there"] == []


CLAIMS = load_claims(ROOT / "params/claims.yaml")


def of_one_run(results):
    return {claim["id"]: claim for claim in claims_of_one_run(CLAIMS, results, seed=3)}


def test_claims_take_sides_but_one_run_gives_no_verdict():
    found = of_one_run({"base": OPEN, "base, again": OPEN, "linear": OPEN, "SFT": SAFE, "categorized": SAFE})
    assert set(found) == {"categorized_over_linear", "over_sft", "jailbreaks_sft", "null_same_policy"}
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
    sums = {"linear": OPEN, "linear, cross calibrated": SAFE, "linear, own raw": OPEN}
    found = claims_of_one_run(CLAIMS, {"categorized": SAFE} | sums, seed=0)
    assert [(row["id"], row["control"], row["this_run"]) for row in found] == [
        ("categorized_over_linear", "linear, cross calibrated", "open"),
        ("categorized_over_linear: linear", "linear", "for"),
        ("categorized_over_linear: linear, own raw", "linear, own raw", "for"),
    ]


def test_every_claim_of_one_run_names_its_control_and_source():
    about = [claim for claim in CLAIMS if claim.treatment.startswith("06_evaluation/")]
    names = {name.split("/")[1] for claim in about for name in (claim.treatment, claim.control)} - {"linear*"}
    found = of_one_run(dict.fromkeys([*names, "linear"], OPEN))
    assert set(found) == {claim.id for claim in about} and len(about) == 9
    needed = {"id", "source", "claim", "measure", "estimate", "low", "high", "seeds", "control", "verdict", "note"}
    assert all(needed <= set(record) for record in found.values())


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
    book = papermill.execute_notebook(
        ROOT / "notebooks/A6_over_seeds.ipynb", repository / "A6.ipynb", {"studies": 1500}, progress_bar=False
    )
    shown = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    return read_json(repository / "outputs/lab/A6_over_seeds/metrics.json"), shown


def test_without_records_no_claim_is_decided_and_a6_says_so(repository):
    metrics, shown = over_seeds(repository)
    assert metrics["verdict_not_measured"] == len(CLAIMS) and metrics["claims-act/seeds"] == 0
    assert "claims-act: no records, so it decides no claim; run `srmir seeds claims-act`" in shown
    assert "No claim is decided over seeds here" in shown and "srmir seeds PRESET" in shown


def test_records_of_other_parameters_decide_nothing(repository):
    for seed in (2, 3):
        record = {
            "notebook": "01_data",
            "seed": seed,
            "chain": "of old",
            "git_commit": "abc",
            "metrics": {"cod_tokens": 9},
        }
        write_json(repository / f"outputs/reference/seeds/claims-act/{seed}/01_data.json", record)
    metrics, shown = over_seeds(repository)
    assert metrics["claims-act/seeds"] == 0 and metrics["verdict_not_measured"] == len(CLAIMS)
    assert "2 records are stale (outputs/reference/seeds/claims-act/2/01_data.json is one)" in shown
