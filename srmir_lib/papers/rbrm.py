r"""RBRM: a policy's own states say which answers of a fixed pool are better, and how sure that is (pure functions).

Deng et al. 2025 (arXiv 2503.10093). While a policy is trained off-policy, they hold, the order in which it puts outputs
changes and their distribution hardly does; so a pool of answers is ranked again instead of sampled again.
`hybrid_reward` reads a score off the states of all layers and `readout_loss` trains it; `best_and_worst` makes a pair
of a pool, `batch_confidence` or `pair_confidence` says how far to trust it, and `confidence_dpo_loss` trains on it.
Read `hybrid_reward` first. Ours are what happens to ties and the confidence of a single pair.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from srmir_lib.errors import InputError, RowError

ALPHA = 7.5
r"""$\alpha$ of the confidence (Deng et al. 2025)."""


def hybrid_reward(states: Tensor, weights: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    r"""$s_l=w_l^\top h^{(l)}+b_l$, $g=\sigma(Vs)$, $r=\sum_l g_l s_l$: one score of the states of all L layers.

    `states` (N, L, H), `weights` (L, H), `bias` (L,), `gate` $V$ (L, L) -> (N,), higher is better. Deng et al. 2025.
    """
    scores = (states * weights).sum(dim=-1) + bias
    return (torch.sigmoid(scores @ gate.T) * scores).sum(dim=-1)


def readout_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    r"""$-\log\sigma(r_c-r_r-1)$, mean over pairs: (N,), (N,) -> scalar (nats). Deng et al. 2025.

    Legend's `margin_loss` with a margin of one for every pair (tested).
    """
    return -logsigmoid(chosen_scores - rejected_scores - 1).mean()


def pair_confidence(chosen_scores: Tensor, rejected_scores: Tensor, alpha: float = ALPHA) -> Tensor:
    r"""$\gamma_i=\max(\sigma(\alpha(c_i-r_i)),\tfrac12)$, $c_i,r_i=\sigma(\cdot)-\tfrac12$ of a pair's two scores.

    (N,), (N,) -> (N,) in [1/2, 1), without a gradient. Ours: `batch_confidence` of each pair alone.
    """
    gap = torch.sigmoid(chosen_scores.detach()) - torch.sigmoid(rejected_scores.detach())
    return torch.sigmoid(alpha * gap).clamp(min=0.5)


def batch_confidence(chosen_scores: Tensor, rejected_scores: Tensor, alpha: float = ALPHA) -> Tensor:
    r"""$\gamma=\max(\sigma(\alpha(\bar c-\bar r)),\tfrac12)$, $\bar c,\bar r$ means of $\sigma(\cdot)-\tfrac12$.

    (N,), (N,) -> scalar in [1/2, 1), without a gradient: how likely a label of this batch is right. Deng et al. 2025.
    """
    chosen, rejected = (torch.sigmoid(side.detach()) - 0.5 for side in (chosen_scores, rejected_scores))
    return torch.sigmoid(alpha * (chosen.mean() - rejected.mean())).clamp(min=0.5)


def confidence_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, confidence: Tensor, beta: float
) -> Tensor:
    r"""$-\gamma\log\sigma(\beta h)-(1-\gamma)\log\sigma(-\beta h)$, $h$ the log-ratios' difference, mean over pairs.

    Log-ratios $\log\pi_\theta(y|x)/\pi_{ref}(y|x)$ in nats (N,), (N,), `confidence` $\gamma$ (N,) or a scalar -> scalar
    (nats). Deng et al. 2025. Least at $\beta h=\mathrm{logit}(\gamma)$; with $\gamma=1$ plain DPO (both tested).
    `ConfidenceDPOTrainer` runs it through TRL.
    """
    gap = beta * (chosen_logratios - rejected_logratios)
    return -(confidence * logsigmoid(gap) + (1 - confidence) * logsigmoid(-gap)).mean()


def best_and_worst(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Where the best and the worst of K answers stand, the pair that a pool becomes: (N, K) -> (N,), (N,).

    Deng et al. 2025; of answers that score the same the first counts (ours). A pool without two different scores is a
    `RowError`, and so is one whose scores are not finite.
    """
    if not scores.isfinite().all():
        row = int((~scores.isfinite()).any(dim=-1).nonzero()[0])
        raise RowError("{row}: its answers' scores are not finite; learn the read-outs again", row)
    if scores.shape[-1] < 2:
        raise InputError(f"a pool of {scores.shape[-1]} answer; a pair needs two, leave it out")
    best, worst = scores.argmax(dim=-1), scores.argmin(dim=-1)
    if (best == worst).any():
        row = int((best == worst).nonzero()[0])
        raise RowError("{row}: all of its answers score the same, so none is better; leave it out", row)
    return best, worst
