"""The two-sample test: by hand, against a naive second form, right under the null, blind to what groups differ in."""

import numpy as np
import pytest

from srmir_lib.errors import InputError
from srmir_lib.statistics import two_sample_test


def naive(first, second):
    """The estimate, one pair of rows at a time."""
    rows = np.concatenate([first, second])
    squares = [[((a - b) ** 2).sum() for b in rows] for a in rows]
    median = np.median([squares[i][j] for i in range(len(rows)) for j in range(i)])
    n, total = len(first), 0.0
    for i in range(n):
        for j in range(n):
            k = lambda a, b: np.exp(-squares[a][b] / median)  # noqa: E731
            total += (i != j) * (k(i, j) + k(n + i, n + j)) / (n * (n - 1)) - 2 * k(i, n + j) / n**2
    return total


def test_the_estimate_by_hand_and_against_the_naive_form():
    # Two points at 0 and two at 1: distances 0 or 1, the median of six (0, 0, 1, 1, 1, 1) is 1.
    found, p = two_sample_test([[0.0], [0.0]], [[1.0], [1.0]], [0, 1])
    assert found == pytest.approx(2 - 2 * np.exp(-1))
    random = np.random.default_rng(0)
    first, second = random.normal(size=(7, 3)), random.normal(1, 2, size=(7, 3))
    assert two_sample_test(first, second, range(7))[0] == pytest.approx(naive(first, second))


def test_p_is_right_under_the_null_and_small_where_samples_differ():
    random = np.random.default_rng(1)
    at_null = [two_sample_test(*random.normal(size=(2, 12, 2)), range(12), 99, seed)[1] for seed in range(200)]
    assert 0.02 <= np.mean(np.array(at_null) <= 0.05) <= 0.09
    shifted = random.normal(size=(12, 2)) + 2
    assert two_sample_test(random.normal(size=(12, 2)), shifted, range(12), 199)[1] == pytest.approx(1 / 200, abs=0.01)


def test_labels_change_places_within_a_prompt_only():
    """Prompts far apart, and both samples alike within each: what parts the prompts must not count."""
    random = np.random.default_rng(2)
    centres = np.repeat(random.normal(size=(6, 2)) * 100, 2, axis=0)
    groups = np.repeat(range(6), 2)
    draws = [centres + random.normal(size=(12, 2)) for _ in range(2)]
    assert two_sample_test(*draws, groups, 199)[1] > 0.05
    moved = draws[1] + [3.0, 0.0]
    assert two_sample_test(draws[0], moved, groups, 199)[1] <= 0.05


def test_samples_of_other_sizes_are_refused():
    with pytest.raises(InputError, match="3 and 2 rows of 3 prompts"):
        two_sample_test(np.zeros((3, 1)), np.zeros((2, 1)), range(3))
