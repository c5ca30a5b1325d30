"""Best-of-n: how far a proxy can be trusted when it picks the best of more and more answers."""

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

from srmir_lib.artifacts import InputError


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
