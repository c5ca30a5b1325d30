"""Claims against numbers worked by hand; verdicts at their edges; a claim file that is wrong is one line."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from srmir_lib.errors import InputError
from srmir_lib.evaluation.claims import SeedClaim, decide_claims, load_claims, overall

ROOT = Path(__file__).resolve().parents[1]
BASE = {"id": "x", "source": "s", "claim": "c", "treatment": "n/a", "control": "n/b"}


def records(a, b) -> dict:
    return {seed: {"n/a": x, "n/b": y} for seed, (x, y) in enumerate(zip(a, b, strict=True), start=1)}


def test_the_interval_by_hand():
    # differences .1, .3: mean .2, deviation .1 sqrt 2, t(1) = 12.706: half = 12.706 * .1 sqrt 2 / sqrt 2
    (row,) = decide_claims([SeedClaim(**BASE)], records([0.5, 0.8], [0.4, 0.5]), "act")
    assert row["estimate"] == pytest.approx(0.2)
    assert [row["low"], row["high"]] == pytest.approx([0.2 - 1.2706, 0.2 + 1.2706], abs=1e-3)
    assert row["seeds"] == [1, 2] and row["world"] == "act" and row["verdict"] == "inconclusive"


def test_ratios_and_values():
    found = records([1.0, 4.0], [2.0, 2.0])
    assert SeedClaim(**BASE, form="ratio").estimates(found) == {1: 0.5, 2: 2.0}
    assert SeedClaim(**BASE | {"control": ""}, form="value").estimates(found) == {1: 1.0, 2: 4.0}


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
    assert SeedClaim(**BASE, **options).verdict(*interval) == verdict


def test_seeds_without_the_metric_do_not_count_and_one_seed_is_no_interval():
    found = records([0.5, 0.8], [0.4, 0.5]) | {3: {"n/a": 0.5}}
    (row,) = decide_claims([SeedClaim(**BASE)], found)
    assert row["seeds"] == [1, 2]
    (row,) = decide_claims([SeedClaim(**BASE)], {1: found[1]})
    assert row["verdict"] == "not measured" and row["estimate"] is None


def test_a_null_comes_out_in_about_one_of_forty():
    """Two equal treatments, five seeds: the interval lies above zero in 2.5 % of the studies, by the t quantile."""
    draw, claim = np.random.default_rng(0), SeedClaim(**BASE)
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
    assert overall([row("reproduced"), row("inconclusive")]) == "differs"
    assert overall([row("reproduced"), row("not measured")]) == "reproduced (not measured everywhere)"
    assert overall([row("not measured")]) == "not measured"


def test_a_claim_for_one_world_is_not_made_in_another():
    claim = SeedClaim(**BASE, worlds=["here"])
    found = {world: decide_claims([claim], records([1.0, 2.0], [0.0, 0.5]), world) for world in ("here", "there")}
    assert [row["world"] for row in found["here"]] == ["here"] and found["there"] == []
