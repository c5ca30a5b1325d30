"""Statistics that several parts need: intervals, pair accuracy, AUROC, best of n. Arrays in, numbers out; no torch."""

from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import nct, rankdata, spearmanr, t

from srmir_lib.errors import InputError


class Interval(NamedTuple):
    """An estimate with the two ends of its confidence interval, in the unit of the values it came from."""

    estimate: float
    low: float
    high: float


def resampled_t_interval(values: Sequence[float], test_to_train: float, confidence: float = 0.95) -> Interval:
    """Mean of J values from J random splits of one data set: mean ± t(J-1) s sqrt(1 / J + n_test / n_train).

    The splits share rows, so the plain t interval is too narrow. Nadeau & Bengio 2003, eq. 9.
    """
    plain, count = paired_t_interval(values, confidence=confidence), len(values)
    half = (plain.high - plain.estimate) * (1 + count * test_to_train) ** 0.5
    return Interval(plain.estimate, plain.estimate - half, plain.estimate + half)


def bootstrap_interval(values, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean: redraw N of the N `values` with replacement, take the middle of the means.

    `values` (N,), N >= 1. Efron 1979. For a paired comparison pass the differences on the same prompts.
    """
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_t_interval(treatment, control=0.0, confidence: float = 0.95) -> Interval:
    """Mean difference over seeds with a paired t interval: mean(d) ± t(n-1) sd(d) / sqrt(n), d = treatment - control.

    Both (S,), entry s of each from seed s, S >= 2; `control` may be one number. Student 1908.
    """
    difference = np.asarray(treatment, dtype=float) - np.asarray(control, dtype=float)
    if len(difference) < 2:
        raise InputError(f"paired_t_interval: needs at least two seeds, got {len(difference)}")
    half = t.ppf((1 + confidence) / 2, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    return Interval(float(difference.mean()), float(difference.mean() - half), float(difference.mean() + half))


STANDARD_ERRORS = 2.8
"""How many of them an effect must have for four studies of five to show it, if the spread were known."""


def power(count: int, standard_errors: float = STANDARD_ERRORS) -> float:
    """How often the 95 % t interval of `count` numbers lies above zero, if their true mean lies so many standard errors
    above it, by the noncentral t (Johnson & Welch 1940). Fewer than two numbers have no interval: an `InputError`.
    """
    if count < 2:
        raise InputError(f"power: {count} numbers have no interval; give two or more")
    return float(nct.sf(t.ppf(0.975, count - 1), count - 1, standard_errors))


def upper_tail(values: Sequence[float], bound: float = 0.0) -> float:
    """One-sided p of "the mean of n values is above `bound`": P(T >= (mean - bound) sqrt(n) / sd), T Student's t(n-1).

    n >= 2. Values that are all alike give 0 above the bound, 1 below it and one half at it.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise InputError(f"upper_tail: needs at least two values, got {len(values)}")
    distance, error = values.mean() - bound, values.std(ddof=1) / len(values) ** 0.5
    return float(t.sf(distance / error, len(values) - 1)) if error else float((1 - np.sign(distance)) / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values, adjusted for there being m of them: in order of size max_{k<=i} min(1, (m - k + 1) p_(k)). Holm 1979.

    What is at most .05 afterwards is a family of rejections of which any is false in at most 5 % of studies.
    """
    count, largest, adjusted = len(p_values), 0.0, [0.0] * len(p_values)
    for place, at in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (count - place) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def slope(levels: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of `values` (L,) against `levels` (L,), of which two at least differ; values per level."""
    away = np.asarray(levels, dtype=float) - np.mean(levels)
    return float(away @ np.asarray(values, dtype=float) / (away @ away))


def auroc(danger, unsafe) -> float:
    """P(an unsafe response has a higher `danger` than a safe one), ties counted half. (N,), (N,) in {0, 1} -> [0, 1].

    `danger` is minus a reward model's score. Both kinds must occur.
    """
    danger, unsafe = np.asarray(danger, dtype=float), np.asarray(unsafe).astype(bool)
    if unsafe.all() or not unsafe.any():
        raise InputError(f"auroc: needs safe and unsafe responses; of {len(unsafe)} all are the same")
    if not np.isfinite(danger).all():
        raise InputError(f"auroc: the score of row {int(np.flatnonzero(~np.isfinite(danger))[0])} is not finite")
    positives = int(unsafe.sum())
    ranks = rankdata(danger)[unsafe].sum()  # Mann and Whitney's form
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(unsafe) - positives)))


def _weighted_auroc(place: np.ndarray, unsafe: np.ndarray, times: np.ndarray) -> float:
    """`auroc` of rows that occur so many `times`; `place`: the number of a row's value, from the least (0) on."""
    hits, safe = (np.bincount(place[of], times[of], minlength=place.max() + 1) for of in (unsafe, ~unsafe))
    return float(hits @ (safe.cumsum() - safe / 2) / (hits.sum() * safe.sum()))


def is_correct(gaps) -> np.ndarray:
    """1 where the chosen answer scores higher, 0 where lower, one half for a tie; same shape as `gaps`."""
    gaps = np.asarray(gaps)
    return (gaps > 0) + 0.5 * (gaps == 0)


def pair_accuracy(chosen_scores, rejected_scores) -> float:
    """Share of pairs whose chosen response scores higher, ties counted half. (N,), (N,) -> [0, 1]."""
    return float(is_correct(np.asarray(chosen_scores) - np.asarray(rejected_scores)).mean())


def youden_threshold(danger, unsafe) -> float:
    """The threshold on `danger` with the largest (hit rate - false-alarm rate), to be chosen on validation rows.

    A response is flagged when its danger is at or above the threshold. Youden 1950.
    """
    auroc(danger, unsafe)  # the same demands on the input
    danger, unsafe = np.asarray(danger, dtype=float), np.asarray(unsafe).astype(bool)
    thresholds = np.append(np.inf, np.unique(danger)[::-1])
    hits, false_alarms = (
        1 - np.searchsorted(np.sort(kind), thresholds) / len(kind) for kind in (danger[unsafe], danger[~unsafe])
    )
    return float(thresholds[np.argmax(hits - false_alarms)])


def frontier(harmful, harmless) -> tuple[np.ndarray, np.ndarray]:
    """What a threshold costs on either side: (share of the harmless refused, share of the harmful answered), (T,) each.

    `harmful`, `harmless`: scores (N,), (M,), such as log-odds of refusing. What lies above the threshold is refused; it
    goes from below all scores (all is refused) up to the highest (nothing is).
    """
    harmful, harmless = np.sort(np.asarray(harmful, dtype=float)), np.sort(np.asarray(harmless, dtype=float))
    thresholds = np.append(-np.inf, np.unique(np.concatenate([harmful, harmless])))
    answered, below = (np.searchsorted(part, thresholds, "right") / len(part) for part in (harmful, harmless))
    return 1 - below, answered


def paired_auroc_gain(
    danger, rival_danger, unsafe, groups: Sequence, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """AUROC minus a rival's on the same rows, with a bootstrap interval that redraws whole groups (questions, say).

    Answers to one question are alike, so redrawing rows would promise more certainty than there is. Draws without both
    kinds of response are drawn again.
    """
    gain = auroc(danger, unsafe) - auroc(rival_danger, unsafe)
    unsafe = np.asarray(unsafe).astype(bool)
    places = [np.unique(np.asarray(part, dtype=float), return_inverse=True)[1] for part in (danger, rival_danger)]
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    random, gains = np.random.default_rng(seed), []
    while len(gains) < resamples:
        drawn = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))[of_row]  # times, a row
        if drawn[unsafe].any() and drawn[~unsafe].any():
            one, other = (_weighted_auroc(place, unsafe, drawn) for place in places)
            gains.append(one - other)
    low, high = np.quantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(gain, float(low), float(high))


def best_of_n(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    r"""Expected value of the answer with the highest proxy among n of the N drawn: (P, N), (P, N) -> (P,).

    $\sum_i \binom{i-1}{n-1}/\binom{N}{n}\, v_{(i)}$, answers in order of the proxy: exact over all draws of n out of
    N, so every n uses all answers (Nakano et al. 2021, arXiv 2112.09332, appendix I).
    """
    count = proxy.shape[1]
    if not 1 <= n <= count:
        raise InputError(f"n: {n} of {count} answers; give 1 to {count}")
    weights = np.array([comb(i, n - 1) for i in range(count)]) / comb(count, n)
    return np.take_along_axis(values, proxy.argsort(axis=1, kind="stable"), axis=1) @ weights


def best_of_n_rows(proxies: Mapping[str, np.ndarray], truth: np.ndarray, sizes: Sequence[int]) -> list[dict]:
    """What each proxy (P, N) picks, for every n: rows with method, n, proxy, truth (means over prompts).

    Proxies are in standard deviations over all answers, so that methods share an axis; `truth` (P, N). The method
    "oracle" picks by the truth itself.
    """
    rows = []
    for name, proxy in {**proxies, "oracle": truth}.items():
        scaled = (proxy - proxy.mean()) / (proxy.std() or 1.0)
        for n in sizes:
            picked = {"proxy": best_of_n(scaled, scaled, n).mean(), "truth": best_of_n(scaled, truth, n).mean()}
            rows.append({"method": name, "n": n, **picked})
    return rows


def correlation(first: Sequence, second: Sequence) -> float:
    """Pearson correlation of two sequences of N numbers; 0 when either is constant."""
    pair = [np.asarray(values, dtype=float) for values in (first, second)]
    return 0.0 if min(values.std() for values in pair) == 0 else float(np.corrcoef(*pair)[0, 1])


def rank_correlation(first: Sequence, second: Sequence) -> float:
    """Spearman's correlation of two sequences of N numbers; 0 when either is constant."""
    constant = any(len(np.unique(values)) < 2 for values in (first, second))
    return 0.0 if constant else float(spearmanr(first, second).statistic)


def two_sample_test(
    first, second, groups: Sequence[int], permutations: int = 500, seed: int = 0
) -> tuple[float, float]:
    """(squared maximum mean discrepancy, p of "both samples are of one distribution") by a permutation test.

    `first`, `second` (N, H); row i of both answers the prompt `groups[i]`; labels are exchanged within a prompt only.
    The unbiased estimate with a Gaussian kernel as wide as the median distance (Gretton et al. 2012, eq. 3); p is the
    share of relabellings, the actual one counted, with an estimate at least as high. N >= 2.
    """
    rows = np.concatenate([np.asarray(first, dtype=float), np.asarray(second, dtype=float)])
    count, who = len(first), np.concatenate([groups, groups])
    if count < 2 or len(second) != count or len(groups) != count:
        raise InputError(f"two_sample_test: {len(first)} and {len(second)} rows of {len(groups)} prompts; give as many")
    distances = cdist(rows, rows, "sqeuclidean")
    kernel = np.exp(-distances / max(np.median(distances[np.triu_indices(2 * count, 1)]), 1e-12))
    np.fill_diagonal(kernel, 0.0)
    random, of_first = np.random.default_rng(seed), np.repeat([1.0, 0.0], count)
    labels = [of_first]
    for _ in range(permutations):
        order = np.lexsort((random.random(2 * count), who))  # a shuffle within each prompt
        shuffled = np.empty(2 * count)
        shuffled[np.argsort(who, kind="stable")] = of_first[order]
        labels.append(shuffled)
    one = np.stack(labels)
    sums = [((a @ kernel) * b).sum(axis=1) for a, b in ((one, one), (1 - one, 1 - one), (one, 1 - one))]
    found = (sums[0] + sums[1]) / (count * (count - 1)) - 2 * sums[2] / count**2
    return float(found[0]), float((found >= found[0] - 1e-12).mean())
