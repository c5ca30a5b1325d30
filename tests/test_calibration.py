"""z-scores by hand; bad reference sets and damaged files are one clear line."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from srmir_lib.artifacts import write_json
from srmir_lib.errors import InputError
from srmir_lib.reward_models.calibration import Calibration, calibration_set, pay_of_length, variance_shares
from srmir_lib.reward_models.shadow import ShadowRewardModels, calibrate_sets


def test_z_scores_by_hand(tmp_path):
    scores = torch.tensor([[1.0, 10.0], [3.0, 30.0]])  # means 2, 20; std (n - 1) sqrt(2), 10 sqrt(2)
    calibration = Calibration.fit(scores, ["crimes", "privacy"])
    root = 2**0.5
    expected = torch.tensor([[-1 / root, -1 / root], [1 / root, 1 / root]])
    assert torch.allclose(calibration.apply(scores), expected)
    assert torch.allclose(calibration.apply(torch.tensor([[2.0, 40.0]])), torch.tensor([[0.0, root]]))
    again = Calibration.load(calibration.save(tmp_path / "calibration.json"))
    assert again == calibration


def test_a_loud_model_decides_a_raw_sum_and_not_a_calibrated_one():
    scores = torch.tensor([[0.0, 100.0], [1.0, 0.0], [0.5, 50.0], [2.0, 10.0]])
    raw = scores.sum(dim=1)
    calibrated = Calibration.fit(scores, ["crimes", "privacy"]).apply(scores).sum(dim=1)
    assert raw.argmax() == 0, "raw: the second model shouts"
    assert calibrated.argmax() == 3, "calibrated: (2.0, 10.0) has z-scores 1.32 and -0.66, the largest sum"


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([[1.0, 2.0], [1.0, 3.0]]),
        torch.tensor([[1.0, float("nan")], [2.0, 3.0]]),
        torch.tensor([[1.0, float("inf")], [2.0, 3.0]]),
        torch.ones(1, 2),
        torch.ones(4, 3),
        torch.ones(4),
    ],
)
def test_useless_reference_sets_are_refused(scores):
    with pytest.raises(InputError, match="calibration: "):
        Calibration.fit(scores, ["crimes", "privacy"])


def test_scores_of_other_models_are_refused():
    calibration = Calibration(("crimes", "privacy"), (0.0, 0.0), (1.0, 1.0), 2)
    with pytest.raises(InputError, match="for 2 models"):
        calibration.apply(torch.ones(4, 3))


@pytest.mark.parametrize("value", [{}, [], {"rows": 3, "categories": {"crimes": {"mean": 0}}}, {"categories": 3}])
def test_a_damaged_file_is_named(tmp_path, value):
    path = write_json(tmp_path / "calibration.json", value)
    with pytest.raises(InputError, match="calibration.json: not a calibration file"):
        Calibration.load(path)


def test_a_zero_std_in_a_file_is_refused(tmp_path):
    path = write_json(tmp_path / "c.json", {"rows": 3, "categories": {"crimes": {"mean": 0, "std": 0}}})
    with pytest.raises(InputError, match="model crimes"):
        Calibration.load(path)


def test_the_reference_set_is_what_the_policy_says_and_the_demonstrations():
    rows = {"prompt": ["a", "b", "c"], "chosen": ["A", "B", "C"], "rejected": ["1", "2", "3"]}
    pairs = Dataset.from_dict(rows | {"origin": ["policy", "shuffled", "policy"]})
    assert calibration_set(pairs) == (["a", "c", "a", "c"], ["1", "3", "A", "C"])
    with pytest.raises(InputError, match="1 pairs have origin contrary or policy or own"):
        calibration_set(pairs.select([0, 1]))


def test_variance_shares_by_hand():
    # R = (3, -3): every model's covariance with R over var(R) = 9 is 3 a / 9 for scores (a, -a)
    assert torch.allclose(
        variance_shares(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])), torch.tensor([1 / 3, 2 / 3]).double()
    )
    # two independent models, one three times as loud: variances 1 and 9 of a total of 10
    scores = torch.tensor([[1.0, 3.0], [1.0, -3.0], [-1.0, 3.0], [-1.0, -3.0]])
    assert torch.allclose(variance_shares(scores), torch.tensor([0.1, 0.9]).double())


def test_the_curve_of_length_is_a_local_line_as_a_second_implementation_draws_it():
    """Cleveland's LOWESS by numpy: at each knot a line through the nearest half of the answers, tricube weights."""
    x = np.random.default_rng(0).permutation(200)[:60] + 1.0
    scores = np.stack([3 * x - 1, np.sin(x / 20)], axis=1)
    paid = pay_of_length(torch.tensor(scores), ["a" * int(length) for length in x])
    knots = np.unique(np.quantile(x, np.linspace(0, 1, 25), method="nearest"))
    for place, (line_height, height) in zip(knots, paid(["b" * int(knot) for knot in knots]).tolist(), strict=True):
        near = np.argsort(np.abs(x - place))[:30]
        reach = np.abs(x[near] - place).max()
        weight = (1 - (np.abs(x[near] - place) / reach) ** 3) ** 3
        line = np.polyfit(x[near], scores[near, 1], 1, w=np.sqrt(weight))
        assert line_height == pytest.approx(3 * place - 1, abs=1e-6)
        assert height == pytest.approx(np.polyval(line, place), abs=1e-6)


def test_a_length_that_half_of_the_answers_have_gets_their_mean():
    for lengths, means in (([5] * 20 + [9] * 20 + [30] * 20, [9.5, 29.5, 49.5]), ([5] * 8 + [9] * 8, [3.5, 11.5])):
        scores = torch.arange(float(len(lengths))).double().unsqueeze(1)
        paid = pay_of_length(scores, ["a" * length for length in lengths])
        assert paid(["b" * length for length in sorted({*lengths})]).flatten().tolist() == pytest.approx(means)


def test_the_pay_for_length_is_taken_off():
    draw = np.random.default_rng(1)
    lengths = draw.integers(5, 200, 400)
    merit = draw.normal(size=400)
    responses = ["a" * length for length in lengths]
    scores = torch.tensor(np.stack([merit + 0.05 * lengths, merit - 0.02 * lengths], axis=1))
    for column in (scores - pay_of_length(scores, responses)(responses)).T.numpy():
        assert abs(np.corrcoef(column, lengths)[0, 1]) < 0.05 and np.corrcoef(column, merit)[0, 1] > 0.98


def test_scaled_gaps_are_differences_of_scaled_scores():
    scores = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.fit(scores, ["a", "b"])
    scaled = calibration.apply(scores)
    assert torch.allclose(calibration.scale_gaps(scores[:20] - scores[20:]), scaled[:20] - scaled[20:], atol=1e-5)


class Lengths:
    def score(self, prompts, completions, columns=None):
        return torch.tensor([[len(p), len(p + c)] for p, c in zip(prompts, completions, strict=True)]).float()


def test_the_sets_that_have_a_folder_are_calibrated_and_saved_there(tmp_path):
    names = ["question", "both"]
    sets = {name: ShadowRewardModels(Lengths(), names, "by hand") for name in ("new", "old")}
    raw = calibrate_sets(sets, {"new": tmp_path}, ["a", "abc"], ["xy", "wxyz"])
    assert {name: scores.tolist() for name, scores in raw.items()} == dict.fromkeys(sets, [[1, 3], [3, 7]])
    kept = sets["new"].calibration
    assert kept.mean == (2.0, 5.0) and kept.std == pytest.approx((2**0.5, 8**0.5))
    assert Calibration.load(tmp_path / "calibration.json") == kept and sets["old"].calibration is None
