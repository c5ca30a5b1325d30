"""What an objective asks of each pair's reward gap: a margin to exceed, a limit to stay below, or nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srmir_lib.artifacts import InputError
from srmir_lib.embeddings import embed, load_trunk
from srmir_lib.encoder_rewards import resolve_encoder
from srmir_lib.objectives import (
    PCRM_CONSTANTS,
    angle_similarity,
    bradley_terry_loss,
    length_similarity,
    margin_loss,
    pcrm_limit,
    pcrm_loss,
)

LIMITS = ("pcrm_length", "pcrm_cosine")
OBJECTIVES = ("bradley_terry", "margin", *LIMITS)
TARGETS = ("own", "shuffled", "mean")
"""Whose target a pair gets: its own, that of another pair, or the mean of all. The last two are controls: they know the
sizes of the targets and not whose they are."""


def check_objective(objective: str) -> None:
    """Refuse an objective that these reward models cannot be trained for, with the reason."""
    if objective in ("ava_d", "ava_p"):
        raise InputError(
            f"objective: {objective} needs a reward for every token, and these designs give an answer one number; "
            "notebook A1_bayesian_rewards trains it"
        )
    if objective not in OBJECTIVES:
        raise InputError(f"objective: {objective!r} is none of {', '.join(OBJECTIVES)}")


def check_pair_objective(settings) -> None:
    """Refuse settings of a pair objective that contradict each other (`RewardSettings`, `EncoderSettings`)."""
    check_objective(settings.objective)
    if settings.targets not in TARGETS:
        raise InputError(f"targets: {settings.targets!r} is none of {', '.join(TARGETS)}")
    if settings.objective == "bradley_terry" and settings.targets != "own":
        raise InputError(f"targets: bradley_terry has none that could be {settings.targets}; choose margin or pcrm_…")
    if settings.similarity_model and settings.objective != "pcrm_cosine":
        raise InputError(f"similarity_model: objective {settings.objective} does not read it; only pcrm_cosine does")
    if len(settings.limit) not in (0, 3):
        raise InputError(
            f"limit: {settings.limit}; give scale, offset and shift, or nothing for the authors' constants"
        )
    if not isinstance(settings.limit_cap, int | float) or not settings.limit_cap > 0:
        raise InputError(f"limit_cap: {settings.limit_cap!r} must be a number above 0, the largest limit there may be")
    numbers = {"center_rewards_coefficient": settings.center_rewards_coefficient}
    for name, value in [*numbers.items(), *(("limit", part) for part in settings.limit)]:
        if not isinstance(value, int | float) or (name != "limit" and value < 0):
            raise InputError(f"{name}: {value!r} must be a number{'' if name == 'limit' else ', at least 0'}")


def loss_of(objective: str):
    """The loss of an objective, of chosen scores, rejected scores and, if it has one, the target, (N,) each."""
    check_objective(objective)
    if objective == "bradley_terry":
        return bradley_terry_loss
    return pcrm_loss if objective in LIMITS else margin_loss


def pair_targets(settings, pairs, chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], reader):
    """The target of every pair's gap, (N,) in score units: its `margin`, its limit, or None (Bradley-Terry has none).

    `settings`: a `RewardSettings` or `EncoderSettings`. `pairs`: rows with prompt, chosen, rejected; `chosen`,
    `rejected`: their token ids. `reader`: a frozen model and its tokenizer, which tell how similar two answers are
    unless the settings name another.
    """
    if settings.objective == "bradley_terry":
        return None
    target = _margins(pairs) if settings.objective == "margin" else _limits(settings, pairs, chosen, rejected, reader)
    if settings.targets == "mean":
        return target.mean().expand(len(target))
    if settings.targets == "shuffled":
        return target[torch.randperm(len(target), generator=torch.Generator().manual_seed(0))]
    return target


def _limits(settings, pairs, chosen, rejected, reader) -> Tensor:
    if settings.objective == "pcrm_length":
        similarity = length_similarity(chosen, rejected)
    else:
        if settings.similarity_model:
            device = str(reader[0].device) if reader else "auto"
            reader = load_trunk(resolve_encoder(settings.similarity_model), device)
        similarity = answer_similarity(pairs, *reader)
    constants = settings.limit or PCRM_CONSTANTS[settings.objective.removeprefix("pcrm_")]
    return pcrm_limit(similarity, *constants, cap=settings.limit_cap)


def answer_similarity(pairs, model, tokenizer) -> Tensor:
    """Angle similarity (N,) of a pair's two answers: means over their tokens, as a frozen model reads them in place."""
    sides = (pairs[side] for side in ("chosen", "rejected"))
    return angle_similarity(*(embed(model, tokenizer, pairs["prompt"], side, pooling="mean") for side in sides))


def _margins(pairs) -> Tensor:
    if "margin" not in pairs.column_names:
        raise InputError("preferences: the objective needs a column margin; run 03_margins, or use bradley_terry")
    values = list(pairs["margin"])
    for row, value in enumerate(values):
        if not isinstance(value, int | float):
            raise InputError(f"preferences: the margin of row {row} is {value!r}, not a number; run 03_margins again")
    margin = torch.tensor(values, dtype=torch.float32)
    if not margin.isfinite().all():
        raise InputError(f"preferences: the margin of row {int((~margin.isfinite()).nonzero()[0])} is not finite")
    return margin
