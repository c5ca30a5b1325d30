"""From seven scores to one reward: the linear and the categorized strategy, as callables that TRL takes.

A reward model *scores*; a policy receives a *reward*. The three pure functions at the top are the method; below,
`RewardFunction` wraps them for `GRPOTrainer(reward_funcs=[...])`. One callable, not seven: TRL runs a list of reward
models one after another, tokenizes for each again, and names them by the last part of their path, so that seven folders
called `final` would share one name.
"""

from torch import Tensor


def group_advantages(rewards: Tensor, num_generations: int, eps: float = 1e-4) -> Tensor:
    """A_i = (R_i - mean) / (std + eps) within each group of G completions: rewards (N,), advantages (N,).

    Shao et al. 2024, outcome supervision; std with Bessel's correction and eps as in TRL (a test compares with it).
    """
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + eps)).flatten()
