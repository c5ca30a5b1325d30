r"""DR-IRL: an advantage counts more or less, by how hard its prompt is for the policy and for the reward model.

Cheng & Cao 2025 (arXiv 2503.18991, versions 3 to 5), the successor of SRMIR; of its equations we have a copy at second
hand. In the order of the method: `sub_sentences`, `sentence_similarity` W and `sentence_distance` give each answer its
distance $\delta=1-W$ from the demonstration; `data_hardness` $\alpha^D$ and `model_hardness` $\alpha^M$ compare
distances and reward gaps with their means; `scaled_advantages` applies $\alpha=\alpha^D\alpha^M$. Read it first.

The copy leaves open of what the means are taken and what an empty mask gives: the means are arguments here, and an
empty mask gives 1. With other means `model_hardness` is what is at its origin DAMA, which compares with a running one.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from srmir_lib.errors import InputError
from srmir_lib.papers.grpo import group_advantages

MODES = ("alpha", "inverse", "one", "random", "data", "model")
"""What scales an advantage: the product, one over it, nothing, the product of another prompt, or one factor alone."""


def sub_sentences(text: str) -> list[str]:
    """The parts of a text between full stops, commas and other such marks; none of a text without words."""
    return [part.strip() for part in re.split(r"[.,;:!?\n]+", text) if re.search(r"\w", part)]


def sentence_similarity(demonstrated: Tensor, sampled: Tensor) -> Tensor:
    r"""$W=\tfrac1M\sum_{k=1}^{M}\max_l\cos(\Phi(S^k),\Phi(\tilde S^l))$: how much of a demonstration a sample says.

    Embeddings (M, H) and (L, H) of the sub-sentences of both -> scalar in [-1, 1]. It is not symmetric: what the sample
    says beside costs nothing. A sample without any (L = 0) is like nothing, 0. A demonstration without any, other
    sizes, and embeddings that are not finite are an `InputError`. Cheng & Cao 2025.
    """
    if demonstrated.ndim != 2 or sampled.ndim != 2 or demonstrated.shape[1] != sampled.shape[1]:
        shapes = f"{tuple(demonstrated.shape)} and {tuple(sampled.shape)}"
        raise InputError(f"embeddings: shapes {shapes}; give (M, H) and (L, H), of one encoder")
    if not len(demonstrated):
        raise InputError("embeddings: the demonstration has no sub-sentence; give one that says something")
    if not (demonstrated.isfinite().all() and sampled.isfinite().all()):
        raise InputError("embeddings: not all are finite; check the encoder's weights")
    if not len(sampled):
        return demonstrated.new_zeros(())
    return (normalize(demonstrated, dim=1) @ normalize(sampled, dim=1).T).amax(dim=1).mean()


def sentence_distance(demonstrated: Tensor, samples: Sequence[Tensor]) -> Tensor:
    r"""$\delta_i=1-W_i$ of G samples from their prompt's demonstration: (M, H), G times (L_i, H) -> (G,) in [0, 2]."""
    return 1 - torch.stack([sentence_similarity(demonstrated, sampled) for sampled in samples])


def data_hardness(distance: Tensor, mean: float | Tensor) -> Tensor:
    r"""$\alpha^D=\sigma(\delta)/\sigma(\bar\delta)$: distances (P,) and their mean -> (P,), above 1 where the policy is
    farther from the demonstration than `mean`. Cheng & Cao 2025; distances that are not finite are an `InputError`."""
    return _finite(distance, "distance").sigmoid() / torch.as_tensor(mean).sigmoid()


def kept_gaps(gaps: Tensor, mean: float | Tensor, tau: float) -> Tensor:
    r"""$m=\mathbb 1[(g-\bar g)^2\le\tau]$: gaps (N,) and their mean -> (N,) bool, false for outliers.

    `tau`, the square of the largest distance that counts, in squared units of the gaps, must be above 0.
    """
    if not tau > 0:
        raise InputError(f"tau: {tau} would keep no gap; it must be above 0")
    return (_finite(gaps, "gap") - mean).square() <= tau


def model_hardness(gaps: Tensor, mean: float | Tensor, tau: float) -> Tensor:
    r"""$\alpha^M=\sigma\big(\sum_i m_ig_i/\sum_i m_i\big)/\sigma(\bar g)$ with $g_i=r(x,y)-r(x,\tilde y_i)$: how
    far the reward model puts demonstrations above the policy's answers, outliers left out.

    Gaps (N,) of a category in units of the score, and their `mean` -> scalar; 1 if no gap is kept, for then nothing is
    known. Cheng & Cao 2025. Gaps that are not finite and a `tau` of 0 or less are an `InputError`.
    """
    kept = kept_gaps(gaps, mean, tau)
    if not kept.any():
        return gaps.new_ones(())
    return gaps[kept].mean().sigmoid() / torch.as_tensor(mean).sigmoid()


def scaled_advantages(rewards: Tensor, num_generations: int, alpha: Tensor) -> Tensor:
    r"""$A_i=\alpha\hat A_i$: rewards (N,) of groups of G completions, `alpha` (N / G,) a prompt's -> (N,).

    The *advantage* is scaled. $\alpha$ times the reward gives $\hat A$ again, whatever $\alpha$ is: the mean and the
    deviation of a group grow with its rewards (tested). Each `alpha` must be finite and above 0, or an `InputError`.
    """
    if num_generations < 2 or len(rewards) != len(alpha) * num_generations:
        groups = f"{len(alpha)} groups of {num_generations}"
        raise InputError(f"rewards: {len(rewards)} for {groups}; give each group as many, and at least two")
    if not (_finite(alpha, "alpha") > 0).all():
        raise InputError(f"alpha: {alpha.min().item():.3g} is not above 0; it would turn an advantage round")
    return alpha.repeat_interleave(num_generations) * group_advantages(rewards, num_generations)


def scale_of(mode: str, data: Tensor, model: Tensor, generator: torch.Generator) -> Tensor:
    """What scales the advantages of P prompts in one of the `MODES`, of both hardnesses (P,) -> (P,).

    "random" deals the products out to the prompts of the batch anew, so that only *whose* they are is lost.
    """
    product = data * model
    shuffled = product[torch.randperm(len(product), generator=generator)]
    scales = (product, 1 / product, torch.ones_like(product), shuffled, data, model)
    if mode not in MODES:
        raise InputError(f"mode: {mode!r} is none of {', '.join(MODES)}")
    return dict(zip(MODES, scales, strict=True))[mode]


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.isfinite().all():
        row = int((~values.isfinite()).nonzero()[0])
        raise InputError(f"{name}: {values[row].item()} of row {row} is not finite; look at what it was made of")
    return values
