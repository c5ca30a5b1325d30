"""Put the scores of several reward models on one scale before they are added.

Each model's scores have a scale of their own. Inside a GRPO group all completions share a category, so group
normalisation cancels that scale when one model answers; in a sum over models it decides who is heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srmir_lib.artifacts import as_written, read_json, write_json
from srmir_lib.conversations import text_of
from srmir_lib.data.pairs import SAID
from srmir_lib.errors import InputError

LENGTH_KNOTS = 25


LENGTH_SHARE = 0.5
"""Share of the answers, the nearest in length, that a point of the curve is fitted to (Cleveland 1979: LOWESS)."""


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of every model's scores on a reference set (prompts with the policy's responses)."""

    categories: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: int

    @classmethod
    def fit(cls, scores: Tensor, categories: Sequence[str]) -> "Calibration":
        """`scores` (N, K) raw, of a reference set; std with Bessel's correction. Needs N >= 2 and a spread above 0."""
        if scores.ndim != 2 or scores.shape[1] != len(categories) or len(scores) < 2:
            raise InputError(f"calibration: scores of shape {tuple(scores.shape)}; need (N >= 2, {len(categories)})")
        moments = (tuple(part.tolist()) for part in (scores.double().mean(dim=0), scores.double().std(dim=0)))
        return cls(tuple(categories), *moments, len(scores))

    def __post_init__(self):
        for name, mean, std in zip(self.categories, self.mean, self.std, strict=True):
            if not (torch.tensor([mean, std]).isfinite().all() and std > 0):
                raise InputError(
                    f"calibration: model {name} has mean {mean} and standard deviation {std} on the reference set; "
                    f"it must give finite scores that differ: train it again"
                )

    def apply(self, scores: Tensor) -> Tensor:
        """z-scores: (N, K) raw -> (N, K), mean 0 and standard deviation 1 on the reference set."""
        if scores.ndim != 2 or scores.shape[1] != len(self.categories):
            raise InputError(f"calibration: scores of shape {tuple(scores.shape)} for {len(self.categories)} models")
        return (scores - scores.new_tensor(self.mean)) / scores.new_tensor(self.std)

    def scale_gaps(self, gaps: Tensor) -> Tensor:
        """Raw reward gaps (N, K) in standard deviations: (N, K)."""
        return gaps / gaps.new_tensor(self.std)

    def save(self, path: str | Path) -> Path:
        """Write `calibration.json`."""
        columns = {name: {"mean": m, "std": s} for name, m, s in zip(self.categories, self.mean, self.std, strict=True)}
        return write_json(path, {"rows": self.rows, "categories": columns})

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read `calibration.json`; a damaged file is an `InputError`."""
        value = read_json(path)
        with as_written(path, "not a calibration file", "run the notebook again that wrote it"):
            columns = value["categories"]
            mean, std = (tuple(float(column[key]) for column in columns.values()) for key in ("mean", "std"))
            return cls(tuple(columns), mean, std, int(value["rows"]))


def lengths_of(responses: Sequence) -> np.ndarray:
    """Characters of each response, (N,); texts or messages."""
    return np.array([len(text_of(response)) for response in responses], dtype=float)


def pay_of_length(scores: Tensor, responses: Sequence) -> Callable[[Sequence], Tensor]:
    """What models pay for length alone (Huang et al. 2024, arXiv 2409.17407): other responses (M,) -> (M, K), read off
    curves of `scores` (N, K) over the length of `responses` (N,). A curve is LOWESS without its robust rounds, so that
    it is linear in the scores."""
    lengths = lengths_of(responses)
    knots = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_KNOTS), method="nearest"))
    curves = [_curve(lengths, own, knots) for own in scores.double().T.numpy()]
    return lambda texts: torch.tensor(np.stack([np.interp(lengths_of(texts), knots, one) for one in curves], axis=1))


def _curve(lengths: np.ndarray, scores: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """LOWESS of scores (N,) over lengths (N,) at each knot; where all nearest answers have one length, their mean."""
    from statsmodels.nonparametric.smoothers_lowess import lowess  # takes a second, which most callers need not wait

    with np.errstate(invalid="ignore"):  # of answers of one length
        heights = lowess(scores, lengths, frac=LENGTH_SHARE, it=0, xvals=knots)
    return np.where(np.isnan(heights), [scores[lengths == knot].mean() for knot in knots], heights)


def calibration_set(pairs) -> tuple[list, list]:
    """Prompts and responses to calibrate on, from preference rows whose rejected answer somebody really gave.

    Each prompt comes twice: with its demonstration and with the answer that was rejected, the two ends of what a
    trained policy will say. Borrowed and corrupted answers are left out.
    """
    rows = [row for row, origin in enumerate(pairs["origin"]) if origin in SAID]
    if len(rows) < 2:
        raise InputError(
            f"calibration: {len(rows)} pairs have origin {' or '.join(SAID)}; at least 2 are needed, better hundreds"
        )
    kept = pairs.select(rows)
    return [*kept["prompt"], *kept["prompt"]], [*kept["rejected"], *kept["chosen"]]


def variance_shares(scores: Tensor) -> Tensor:
    r"""Share of the variance of a sum that comes through each model: $\mathrm{cov}(r_j, R)/\mathrm{var}(R)$.

    `scores` (N, K) -> (K,), sums to 1, with $R=\sum_j r_j$. Models with an equal say have about 1 / K each;
    a loud one has more.
    """
    centred = scores.double() - scores.double().mean(dim=0)
    total = centred.sum(dim=1)
    return (centred * total.unsqueeze(1)).mean(dim=0) / total.square().mean()
