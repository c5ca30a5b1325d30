"""Losses of pairwise reward models: pure functions of scores."""

import torch
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor) -> torch.Tensor:
    r"""$-\log\sigma(r(x,y^+)-r(x,y^-))$, mean over pairs.

    Shapes: (N,), (N,) -> scalar (nats). Bradley & Terry 1952; as the reward objective of ML-IRL: Li et al. 2024
    (arXiv 2405.17888), the logistic form used in practice. TRL's `RewardTrainer` runs the same (tested).
    """
    return -logsigmoid(chosen_scores - rejected_scores).mean()


def margin_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    r"""$-\log\sigma(r(x,y^+)-r(x,y^-)-m)$, mean over pairs: the gap must exceed the target margin `m`.

    Shapes: (N,), (N,), (N,) in score units -> scalar (nats). Legend: Feng et al. 2024 (arXiv 2406.08124), section 3.
    TRL's `RewardTrainer` runs the same for a `margin` column (tested).
    """
    return -logsigmoid(chosen_scores - rejected_scores - margin).mean()
