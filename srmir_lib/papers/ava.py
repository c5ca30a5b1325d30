"""AVA: a Gaussian belief about the reward of every token, inferred from what was said (pure functions).

Cai et al. 2024 (arXiv 2411.09341), on the base of AVRIL (Chan & van der Schaar 2021). A token is an action, the text so
far a state; the reward of a token is read from the state that has consumed it. The prior is N(0, 1).

Two forms side by side. *printed*: as in the paper, a softmax over probabilities, sums over tokens, differences of
likelihoods. *stable*: a softmax over logits, means over tokens, log-sigmoids of differences. Everything is maximised.
Read `ava_evidence` first: its terms are the functions above it, and the two objectives below are made of it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from srmir_lib.errors import InputError

FORMS = ("printed", "stable")


READOUTS = ("last", "mean", "sum")


class TokenBeliefs(NamedTuple):
    """What is believed about B answers of at most T tokens; all (B, T), answers start at column 0."""

    q_values: Tensor  # Q(y_1:t, y_t+1) of the token in this column, nats
    mean: Tensor  # posterior mean of its reward
    log_sd: Tensor  # log of the posterior standard deviation
    mask: Tensor  # True where there is a token


def check_beliefs(beliefs: TokenBeliefs, rows=None) -> None:
    """Refuse beliefs of different shapes, about answers without a token, or not finite: one line that names the row."""
    shapes = {name: tuple(part.shape) for name, part in beliefs._asdict().items()}
    if len(set(shapes.values())) > 1 or beliefs.mask.ndim != 2:
        raise InputError(f"token beliefs: all must have one shape (B, T), not {shapes}")
    finite = torch.stack([part.isfinite() for part in beliefs[:3]]).all(dim=0) | ~beliefs.mask
    for bad, what in ((~beliefs.mask.any(dim=1), "has no token"), (~finite.all(dim=1), "is not finite")):
        if bad.any():
            place = int(bad.nonzero()[0])
            raise InputError(f"token beliefs: row {rows[place] if rows is not None else place} {what}")


def gaussian_kl(mean: Tensor, log_sd: Tensor) -> Tensor:
    r"""$D_{KL}[\mathcal N(\mu,\sigma^2)\,\|\,\mathcal N(0,1)]=\frac12(\mu^2+\sigma^2-1-\log\sigma^2)$, nats.

    Any shape, elementwise. Chan & van der Schaar 2021, eq. 6 (its closed form).
    """
    return 0.5 * (mean.square() + (2 * log_sd).exp() - 1) - log_sd


def gaussian_log_density(value: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    r"""$\log\mathcal N(v;\mu,\sigma^2)=-\frac12\big((v-\mu)/\sigma\big)^2-\log\sigma-\frac12\log 2\pi$, elementwise."""
    return -0.5 * ((value - mean) * (-log_sd).exp()).square() - log_sd - 0.5 * math.log(2 * math.pi)


def ava_log_policy(logits: Tensor, alpha: float, form: str) -> Tensor:
    r"""Printed: $\log\mathrm{softmax}(\alpha\,\mathrm{softmax}(z))$; stable: $\log\mathrm{softmax}(\alpha z)$.

    Logits z (..., V) -> (..., V), nats. Cai et al. 2024. Printed, the values differ by at most alpha, whatever the
    model knows: a likely token needs alpha of log V and more to stand out.
    """
    if form not in FORMS:
        raise InputError(f"form: {form!r} is none of {', '.join(FORMS)}")
    return (alpha * (logits.softmax(-1) if form == "printed" else logits)).log_softmax(-1)


def ava_td_error(q_values: Tensor, mask: Tensor, gamma: float) -> Tensor:
    r"""$\delta_t=Q(y_{1:t},y_{t+1})-\gamma\,Q(y_{1:t+1},y_{t+2})$; nothing follows the last token.

    (B, T), (B, T) -> (B, T), 0 where there is no token. Cai et al. 2024. With gamma = 1 an answer's sum is Q of its
    first token, whatever follows.
    """
    own = q_values.where(mask, 0.0)
    following = torch.cat([own[:, 1:], own.new_zeros(len(own), 1)], dim=1)
    return (own - gamma * following).where(mask, 0.0)


def over_tokens(values: Tensor, mask: Tensor, form: str) -> Tensor:
    r"""$\sum_t v_t$, printed; $\frac1{|y|}\sum_t v_t$, stable: (B, T), (B, T) -> (B,)."""
    total = values.where(mask, 0.0).sum(dim=1)
    return total if form == "printed" else total / mask.sum(dim=1)


def ava_evidence(beliefs: TokenBeliefs, gamma: float, lam: float, form: str) -> Tensor:
    r"""$\sum_t\big[-D_{KL}[q_\phi(\cdot|y_{1:t+1})\|p]+\lambda\log q_\phi(\delta_t|y_{1:t+1})\big]$: (B,), nats.

    What AVA-d and AVA-p share: stay near the prior, and find likely the reward that explains what is said next.
    """
    check_beliefs(beliefs)
    q_values, mean, log_sd, mask = beliefs
    delta = ava_td_error(q_values, mask, gamma)
    return over_tokens(lam * gaussian_log_density(delta, mean, log_sd) - gaussian_kl(mean, log_sd), mask, form)


def ava_demonstration_objective(
    beliefs: TokenBeliefs, beta: float = 1.0, gamma: float = 1.0, lam: float = 1.0, form: str = "printed"
) -> Tensor:
    r"""AVA-d: $\sum_t\beta\log\mathrm{softmax}(\alpha\pi_w)_{y_{t+1}}-D_{KL}+\lambda\log q_\phi(\delta_t)$: (B,).

    Demonstrations only; to be maximised. Cai et al. 2024; all weights 1 as in AVRIL's code.
    """
    likelihood = over_tokens(beliefs.q_values, beliefs.mask, form)
    return beta * likelihood + ava_evidence(beliefs, gamma, lam, form)


def ava_preference_objective(
    chosen: TokenBeliefs, rejected: TokenBeliefs, beta=1.0, gamma=1.0, lam=1.0, form="printed", readout="last"
) -> Tensor:
    r"""AVA-p: $\beta\big(Q(y^+)-Q(y^-)\big)+\text{evidence}+\sigma\big(E_q[R|y^+]-E_q[R|y^-]\big)$: (B,).

    Pairs; to be maximised. Cai et al. 2024. Printed, pushing $Q(y^-)$ down pays without end if Q is free: the stable
    form takes $\log\sigma$ of both differences. The evidence is that of both answers.
    """
    q_chosen, q_rejected = (over_tokens(side.q_values, side.mask, form) for side in (chosen, rejected))
    q_gap = beta * (q_chosen - q_rejected)
    gap = answer_reward(chosen, readout) - answer_reward(rejected, readout)
    evidence = ava_evidence(chosen, gamma, lam, form) + ava_evidence(rejected, gamma, lam, form)
    if form == "printed":
        return q_gap + evidence + gap.sigmoid()
    return logsigmoid(q_gap) + evidence + logsigmoid(gap)


def answer_reward(beliefs: TokenBeliefs, readout: str, k: float = 0.0) -> Tensor:
    r"""$\mathbb E_q[R|y]-k\,\mathrm{sd}_q[R|y]$ at the last token, or its mean or sum over the tokens: (B,).

    k = 0 is the posterior mean; k > 0 pays less for what is believed with less certainty.
    """
    if readout not in READOUTS:
        raise InputError(f"readout: {readout!r} is none of {', '.join(READOUTS)}")
    reward = beliefs.mean - k * beliefs.log_sd.exp()
    if readout != "last":
        return over_tokens(reward, beliefs.mask, "stable" if readout == "mean" else "printed")
    return reward.gather(1, beliefs.mask.sum(dim=1, keepdim=True) - 1).squeeze(1)


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    r"""$w_t=\frac1{|y|}\sum_i\mathrm{softmax}_t(q_i\cdot k_t)$: (B, T, d), (B, T, d), (B, T) -> (B, T), rows sum to 1.

    How much the tokens of an answer look at token t, on average. Cai et al. 2024.
    """
    scores = (queries @ keys.mT).masked_fill(~mask.unsqueeze(1), -torch.inf)
    looks = scores.softmax(dim=-1) * mask.unsqueeze(2)
    return looks.sum(dim=1) / mask.sum(dim=1, keepdim=True)
