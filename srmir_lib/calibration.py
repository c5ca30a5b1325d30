"""Put the scores of several reward models on one scale before they are added.

Each model's scores have a scale of their own. Inside a GRPO group all completions share a category, so group
normalisation cancels that scale when one model answers; in a sum over models it decides who is heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srmir_lib.artifacts import InputError, read_json, write_json


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
        return cls(
            tuple(categories),
            tuple(scores.double().mean(dim=0).tolist()),
            tuple(scores.double().std(dim=0).tolist()),
            len(scores),
        )

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

    def save(self, path: str | Path) -> Path:
        """Write `calibration.json`."""
        columns = {name: {"mean": m, "std": s} for name, m, s in zip(self.categories, self.mean, self.std, strict=True)}
        return write_json(path, {"rows": self.rows, "categories": columns})

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read `calibration.json`; a damaged file is an `InputError`."""
        value = read_json(path)
        try:
            columns = value["categories"]
            mean, std = (tuple(float(column[key]) for column in columns.values()) for key in ("mean", "std"))
            return cls(tuple(columns), mean, std, int(value["rows"]))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not a calibration file ({error!r}); run 03_margins again") from error


def reference_set(pairs) -> tuple[list, list]:
    """Prompts and responses to calibrate on, from preference rows whose rejected answer is the policy's own.

    Each prompt comes twice: with what the policy says today and with its demonstration, the two ends of what a trained
    policy will say. Corrupted answers are left out.
    """
    rows = [row for row, origin in enumerate(pairs["origin"]) if origin == "policy"]
    if len(rows) < 2:
        raise InputError(
            f"calibration: {len(rows)} pairs have origin policy; at least 2 are needed, hundreds are better"
        )
    kept = pairs.select(rows)
    return [*kept["prompt"], *kept["prompt"]], [*kept["rejected"], *kept["chosen"]]


def voices(scores: Tensor) -> Tensor:
    r"""Share of the variance of a sum that comes through each model: $\mathrm{cov}(r_j, R)/\mathrm{var}(R)$.

    `scores` (N, K) -> (K,), sums to 1, with $R=\sum_j r_j$. Models with an equal say have about 1 / K each;
    a loud one has more.
    """
    centred = scores.double() - scores.double().mean(dim=0)
    total = centred.sum(dim=1)
    return (centred * total.unsqueeze(1)).mean(dim=0) / total.square().mean()
