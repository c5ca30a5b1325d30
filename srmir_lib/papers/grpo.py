r"""GRPO: answers to one prompt are compared with each other, and the policy moves towards the better ones.

Shao et al. 2024 (arXiv 2402.03300): `group_advantages` is section 4.1.2 (outcome supervision), `grpo_loss` eq. 3 with
its sign turned, `kl_estimate` eq. 4. TRL's `GRPOTrainer` computes all three; tests compare with its own numbers.
Read `group_advantages` first, then `grpo_loss`.

Two departures of the trainer from eq. 3 are arguments of `grpo_loss`: one mean over all tokens in place of a mean over
each answer first (`loss_type="dapo"`; Yu et al. 2025, arXiv 2503.14476, section 3.3), and a KL estimate that is
weighted by the probability ratio (`use_bias_correction_kl`; DeepSeek-V3.2, arXiv 2512.02556).
"""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, num_generations: int, eps: float = 1e-4) -> Tensor:
    """A_i = (R_i - mean) / (std + eps) within each group of G completions: rewards (N,), advantages (N,).

    Shao et al. 2024, outcome supervision; std with Bessel's correction and eps as in TRL (a test compares with it).
    """
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + eps)).flatten()


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    r"""$e^\lambda-\lambda-1$ with $\lambda=\log\pi_{ref}-\log\pi_\theta$ of each token; same shape, nats, at least 0.

    Shao et al. 2024, eq. 4 (k3 of Schulman 2020). Its mean over tokens that the policy drew is KL[policy | reference].
    """
    gap = ref_log_probs - log_probs
    return gap.exp() - gap - 1


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    beta: float,
    epsilon: float,
    loss_type: str,
    use_bias_correction_kl: bool,
) -> Tensor:
    r"""$-\min\big(\rho\hat A,\ \mathrm{clip}(\rho,1\pm\epsilon)\hat A\big)+\beta\,\rho\,(e^\lambda-\lambda-1)$, a mean.

    Log-probabilities (N, T) in nats of the tokens of N answers under the policy, the policy that drew them, and the
    reference; `mask` (N, T), 1 for tokens and 0 for padding; advantages (N,) -> scalar. `loss_type`: "dapo", the mean
    over all tokens; "grpo", the mean over answers of each answer's mean. Without `use_bias_correction_kl` the KL
    estimate has no factor $\rho$. Then its value is the same wherever the ratio is 1, but its slope is not: in the
    policy's log-probability it is $1-e^\lambda$ without, and $-\lambda$ with the factor.
    """
    ratio, advantage = (log_probs - old_log_probs).exp(), advantages.unsqueeze(1)
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
    kl = kl_estimate(log_probs, ref_log_probs) * (ratio if use_bias_correction_kl else 1)
    loss = (beta * kl - gain) * mask
    return (loss.sum(1) / mask.sum(1)).mean() if loss_type == "grpo" else loss.sum() / mask.sum()
