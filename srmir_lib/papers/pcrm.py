"""PCRM: the scores of two answers should lie less far apart the more alike the answers are (pure functions).

Zhou et al. 2024 (arXiv 2404.00978), constants and similarities as in the authors' public code: `pcrm_limit` says how
far, from `length_similarity` or `angle_similarity`; `pcrm_loss` trains a reward model within that limit, and
`pcrm_dpo_loss` a policy. Read `pcrm_loss` first. Ours is the cap of the limit.
"""

from collections.abc import Sequence
from math import pi
from os.path import commonprefix

import torch
from torch.nn.functional import cosine_similarity, logsigmoid

from srmir_lib.errors import InputError

PCRM_CONSTANTS = {"length": (10.0, 0.001, -5.0), "cosine": (20.0, 0.001, -15.0)}
"""Scale, offset and shift of the limit for either similarity, as in the authors' settings."""


def pcrm_limit(similarity: torch.Tensor, scale: float, offset: float, shift: float, cap: float) -> torch.Tensor:
    r"""$\Delta^*=\min\big(\beta_1/(s+\beta_2)+\beta_3,\ \text{cap}\big)$: how far two answers' scores should lie apart.

    `similarity` (N,) in [0, 1] -> (N,) in score units, small for similar answers; `scale`, `offset`, `shift` are
    $\beta_1,\beta_2,\beta_3$. Zhou et al. 2024 (arXiv 2404.00978); the cap is ours: near s = 0 the limit explodes.
    A limit that is not positive asks for the wrong order and is an `InputError`.
    """
    limit = (scale / (similarity + offset) + shift).clamp(max=cap)
    if not (limit > 0).all():
        row = int((~(limit > 0)).nonzero()[0])
        raise InputError(f"limit: {float(limit[row]):.3g} of pair {row} is not positive; raise the scale or the shift")
    return limit


def pcrm_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    r"""$-\log\sigma(d)-\log\sigma(\Delta^*-d)$, $d=r(x,y^+)-r(x,y^-)$, mean over pairs: a gap between zero and a limit.

    Shapes: (N,), (N,), (N,) -> scalar (nats). Zhou et al. 2024 (arXiv 2404.00978). Convex in d and least at half the
    limit, so it is a soft target and no cap (tested).
    """
    gap = chosen_scores - rejected_scores
    return -(logsigmoid(gap) + logsigmoid(limit - gap)).mean()


def pcrm_dpo_loss(
    chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, limit: torch.Tensor, beta: float
) -> torch.Tensor:
    r"""The DPO form: `pcrm_loss` of the implicit rewards $\beta\log\pi_\theta(y|x)/\pi_{ref}(y|x)$, mean over pairs.

    Shapes: (N,), (N,) log-ratios in nats, (N,) in units of the implicit reward -> scalar (nats). Zhou et al. 2024
    (arXiv 2404.00978). `LimitedDPOTrainer` runs half of it through TRL (tested).
    """
    return pcrm_loss(beta * chosen_logratios, beta * rejected_logratios, limit)


def length_similarity(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> torch.Tensor:
    """min / max of two answers' lengths in tokens, counted from where they part: N token lists each -> (N,) in [0, 1].

    Two answers that are the same have similarity 1 (Zhou et al. 2024).
    """
    shares = []
    for pair in zip(chosen, rejected, strict=True):
        common = len(commonprefix([list(side) for side in pair]))
        short, long = sorted(len(side) - common for side in pair)
        shares.append(short / long if long else 1.0)
    return torch.tensor(shares)


def angle_similarity(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    r"""$(\pi-\arccos c)/\pi$, $c$ the cosine of two embeddings: (N, H), (N, H) -> (N,) in [0, 1] (Zhou et al. 2024)."""
    return (pi - torch.arccos(cosine_similarity(left.float(), right.float()).clamp(-1, 1))) / pi
