"""The closed form of best-of-n against all draws, one by one."""

from itertools import combinations

import numpy as np
import pytest

from srmir_lib.errors import InputError
from srmir_lib.statistics import best_of_n, best_of_n_rows


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_it_is_the_mean_over_all_draws(n):
    draw = np.random.default_rng(n)
    proxy, values = draw.normal(size=(4, 5)), draw.normal(size=(4, 5))
    expected = []
    for scores, worth in zip(proxy, values, strict=True):
        picks = [max(chosen, key=lambda i, scores=scores: scores[i]) for chosen in combinations(range(5), n)]
        expected.append(np.mean([worth[i] for i in picks]))
    assert best_of_n(proxy, values, n) == pytest.approx(expected)


def test_one_is_the_mean_and_all_is_the_best():
    proxy, values = np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 20.0, 60.0]])
    assert best_of_n(proxy, values, 1) == pytest.approx([30.0])
    assert best_of_n(proxy, values, 3) == pytest.approx([10.0])


def test_n_must_lie_among_the_answers():
    for n in (0, 4):
        with pytest.raises(InputError, match=f"n: {n} of 3 answers; give 1 to 3"):
            best_of_n(np.ones((2, 3)), np.ones((2, 3)), n)


def test_rows_a_proxy_that_is_the_truth_and_one_that_is_its_opposite():
    truth = np.random.default_rng(0).normal(size=(50, 8))
    rows = best_of_n_rows({"same": 3 * truth + 1, "opposite": -truth}, truth, [1, 8])
    at = {(row["method"], row["n"]): row for row in rows}
    assert at["same", 8]["truth"] == pytest.approx(truth.max(axis=1).mean()) == at["oracle", 8]["truth"]
    assert at["opposite", 8]["truth"] == pytest.approx(truth.min(axis=1).mean())
    assert at["opposite", 8]["proxy"] > 0
