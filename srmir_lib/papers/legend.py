"""Legend margins: how much safer one answer is than another, read off a language model's hidden states.

Feng et al. 2024 (arXiv 2406.08124, AAAI-25). The safety direction is a difference of means, not a principal component;
a margin is the projection of (chosen - rejected) on it. Inference only: nothing is trained.
Sections 3.1 and 3.2: `safety_direction` and `legend_margin`, to be read first; then the loss that uses margins,
`margin_loss`. `scale_margins` is ours: margins come in hidden-state units, a loss wants score units.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from srmir_lib.errors import InputError


def margin_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    r"""$-\log\sigma(r(x,y^+)-r(x,y^-)-m)$, mean over pairs: the gap must exceed the target margin `m`.

    Shapes: (N,), (N,), (N,) in score units -> scalar (nats). Legend: Feng et al. 2024 (arXiv 2406.08124), section 3.
    TRL's `RewardTrainer` runs the same for a `margin` column (tested).
    """
    return -logsigmoid(chosen_scores - rejected_scores - margin).mean()


SCALES = ("none", "unit", "binned")


NEGATIVES = ("keep", "clip", "drop", "flip")


BIN_VALUES = (0.0, 1 / 3, 2 / 3, 1.0)


def safety_direction(safe: Tensor, harmful: Tensor) -> Tensor:
    r"""$v=\tilde v/\|\tilde v\|$, $\tilde v=\frac1N\sum_i[e(q_i,y^+)-e(q_i,y_i^-)]$ (Feng et al. 2024, section 3.1).

    `safe`, `harmful` (N, H): embeddings of the same N questions with a refusal and with an unaligned model's answer.
    Returns (H,) of unit length; no spread between the two is an `InputError`.
    """
    difference = (safe - harmful).float().mean(dim=0)
    length = difference.norm()
    if not length > 0 or not length.isfinite():
        raise InputError(f"safety direction: its length is {float(length)}; the safe and harmful answers must differ")
    return difference / length


def legend_margin(chosen: Tensor, rejected: Tensor, direction: Tensor) -> Tensor:
    r"""$m=(e(x,y_c)-e(x,y_r))^\top v$ (Feng et al. 2024, section 3.2).

    (N, H), (N, H), (H,) -> (N,) in hidden-state units. Below zero the model disagrees with the pair.
    """
    return (chosen - rejected).float() @ direction


def scale_margins(margins: Tensor, scale: str = "unit", negative: str = "keep", size: float = 1.0) -> Tensor:
    """Margins (N,) in hidden-state units -> target margins (N,) in units of score; NaN marks a pair to leave out.

    First the policy for negative margins: "keep" them, "clip" them to 0, "drop" the pair (NaN) or "flip" the sign (the
    pair itself must then be swapped, see `with_margins`). Then the scale: "none"; "unit", divided by their standard
    deviation about zero, so that the margins' root mean square is `size`; "binned", quartile bins of the values 0, 1/3,
    2/3, 1, times `size`; the quartiles are those of the margins from zero on, and below zero is the lowest bin. The
    published bins are not known.
    """
    if scale not in SCALES or negative not in NEGATIVES:
        raise InputError(f"scale {scale!r}, negative {negative!r}: use one of {SCALES} and one of {NEGATIVES}")
    if margins.ndim != 1 or len(margins) == 0 or not margins.isfinite().all():
        raise InputError(f"margins: shape {tuple(margins.shape)}; need (N,) finite numbers, N at least 1")
    margins = margins.float()
    if negative == "clip":
        margins = margins.clamp(min=0)
    elif negative == "flip":
        margins = margins.abs()
    elif negative == "drop":
        margins = torch.where(margins < 0, torch.nan, margins)
    kept = margins[~margins.isnan()]
    if scale == "none" or len(kept) == 0 or kept.abs().max() == 0:
        return margins
    if scale == "unit":
        return size * margins / kept.square().mean().sqrt()
    agreed = kept[kept >= 0] if (kept >= 0).any() else torch.zeros(1)
    edges = torch.quantile(agreed, torch.tensor([0.25, 0.5, 0.75]))
    bins = torch.tensor(BIN_VALUES)[torch.bucketize(margins.nan_to_num(0.0), edges)]
    return torch.where(margins.isnan(), torch.nan, size * bins)
