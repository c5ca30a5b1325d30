"""What a fit of reward models is told, checked when it is made: its objective, its probe, and the rest.

Notebooks make these from settings of their own (`reward_models`); folders of models keep them, to train others alike.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import model_validator

from srmir_lib.errors import InputError
from srmir_lib.settings.base import Settings, told

LIMITS = ("pcrm_length", "pcrm_cosine")
Objective = Literal["bradley_terry", "margin", "pcrm_length", "pcrm_cosine"]

Targets = Literal["own", "shuffled", "mean"]
"""Whose target a pair gets: its own, that of another pair, or the mean of all. The last two are controls: they know the
sizes of the targets and not whose they are."""


RESERVED = ("plain", "oracle")
"""Rows of 03 that are not trained."""


class PairObjective(Settings):
    """What training asks of the gap between a pair's two scores."""

    objective: Objective = told("margin: a gap exceeds the pair's margin; pcrm_…: it stays below", "bradley_terry")
    limit: list[float] = told("pcrm_…: scale, offset, shift; empty: the authors'", [])
    limit_cap: float = told("pcrm_…: the largest limit", 30.0, gt=0)
    targets: Targets = told("whose margin or limit a pair gets", "own")
    similarity_model: str = told("pcrm_cosine: a frozen encoder; empty: the base model", "")
    center_rewards_coefficient: float = told("pulls the two scores of a pair towards a sum of zero", 0.0, ge=0)

    @model_validator(mode="after")
    def _agrees(self):
        if self.objective == "bradley_terry" and self.targets != "own":
            raise ValueError(f"targets: bradley_terry has none that could be {self.targets}; choose margin or pcrm_…")
        if self.similarity_model and self.objective != "pcrm_cosine":
            raise ValueError(f"similarity_model: objective {self.objective} does not read it; only pcrm_cosine does")
        if len(self.limit) not in (0, 3):
            raise ValueError(f"limit: {self.limit}; give scale, offset and shift, or none for the authors' constants")
        return self


class Probe(Settings):
    """What is asked behind a text on a shared trunk."""

    text: str = told("what it asks", " harmful : {category} ?")
    names: dict[str, str] = told(
        "what the base model calls the categories; one that is missing keeps the name it has in the figures", {}
    )
    tokens: int = told("m: the most that a question may have, never cut; 0: as many as the longest has", 0, ge=0)


class SizedProbe(Probe):
    """The same, and how large an adapter answers."""

    rank: int = told("of each adapter", 8, gt=0)
    alpha: int = told("adapters are scaled by alpha / rank", 16, gt=0)


class TrunkTraining(Settings):
    """What every training on a causal trunk is told."""

    batch_size: int = told("preference pairs an update", 8, gt=0)
    lora_rank: int = told("rank of each adapter", 4, gt=0)
    lora_alpha: int = told("adapters are scaled by lora_alpha / lora_rank", 8, gt=0)
    max_length: int = told("longest conversation in tokens; a longer pair is an error", 192, gt=0)
    keep_gb: float = told("memory for what the trunk has read, gigabytes; the rest is read again", 1.5, ge=0)


class RewardSettings(TrunkTraining, PairObjective):
    """How each reward model of a trunk is trained."""

    max_steps: int = told("updates of one model", ge=0)
    learning_rate: float = told("at the first update; falls linearly to zero", gt=0)
    cross_ratio: float = told("cross-category training: pairs of other categories, per pair of its own", 0.0, ge=0)
    unknown_ratio: float = told("pairs of no category that each model sees, per pair of its own", 0.0, ge=0)
    averaged_fits: int = told("design shared: fits in other orders of the pairs whose weights are averaged", 1, gt=0)
    probe: SizedProbe = told("design shared: what is asked; as large as the adapters", SizedProbe())

    @model_validator(mode="after")
    def _sized(self):
        self.__dict__["probe"] = self.probe.changed(rank=self.lora_rank, alpha=self.lora_alpha)
        return self


class EncoderSettings(PairObjective):
    """How an encoder is fine-tuned."""

    epochs: float = told("passes over labelled responses and pairs together", 3.0, gt=0)
    batch_size: int = told("examples an update; a pair is one example", 32, gt=0)
    learning_rate: float = told("of the top layer", 1e-4, gt=0)
    head_learning_rate: float = told("of the new outputs", 5e-4, gt=0)
    layer_decay: float = told("each layer below the top learns this much slower than the one above it", 0.9, ge=0, le=1)
    warmup: float = told("share of the updates over which the learning rate rises", 0.1, ge=0, le=1)
    weight_decay: float = told("AdamW's", 0.01, ge=0)
    pair_weight: float = told("of a preference pair next to a labelled response", 1.0, ge=0)
    mean_weight: float = told("of the loss on the mean of all outputs, next to that on the routed one", 0.3, ge=0)
    averaging: float = told("decay of the running average of the weights that is kept; 0: the last", 0.98, ge=0, lt=1)
    bf16: bool = told("bfloat16 matrix products; faster where the processor has them", False)


class Reading(Settings):
    """How a pair becomes an encoder's tokens."""

    max_tokens: int = told("of prompt and answer together; long ones keep head and tail", gt=0)
    prompt_tokens: int = told("of the prompt", gt=0)

    @model_validator(mode="after")
    def _leaves_room(self):
        if self.prompt_tokens < 2 or self.max_tokens < self.prompt_tokens + 16:
            given = f"max_tokens: {self.max_tokens} leaves no room for a response after prompt_tokens"
            raise ValueError(f"{given} {self.prompt_tokens}")
        return self


def names_the_category(probe: Probe) -> None:
    """Refuse a question that is the same about every category."""
    if "{category}" not in probe.text:
        raise ValueError(f"probe.text: {probe.text!r} must contain {{category}}, or all models ask the same")


def check_objectives(objectives: Mapping[str, Mapping], pooled: bool = False) -> None:
    """Refuse what no set of reward models can be trained with. `objectives`: name -> what differs from the settings of
    another set, which need not be known, and a "seed". In doubt they are a trunk's or, if `pooled`, an encoder's.
    """
    check_folders("objectives", objectives, RESERVED)
    plain = [
        RewardSettings(max_steps=1, learning_rate=1.0, objective="pcrm_cosine"),  # which reads every setting
        EncoderSettings(objective="pcrm_cosine"),
    ]
    for name, changes in objectives.items():
        if not isinstance(changes, Mapping) or type(changes.get("seed", 0)) is not int:
            raise InputError(f"objectives: {name}: {changes}; write settings by name, and a seed as a whole number")
        own = without_seed(changes)
        kinds = plain[::-1] if pooled else plain
        best = max(kinds, key=lambda one: len(own.keys() & type(one).model_fields.keys()))
        best.changed(f"objectives: {name}", **own)


def without_seed(changes: Mapping) -> dict:
    """The settings among the `changes` of an objective."""
    return {name: value for name, value in changes.items() if name != "seed"}


def check_folders(where: str, names: Iterable[str], taken: Iterable[str]) -> None:
    """Refuse names that cannot be a folder, or are those of something else."""
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w .,-]*", name) or name in taken:
            raise InputError(
                f"{where}: {name!r} is a folder's name: write letters, digits, spaces, - and _, "
                f"and none of {', '.join(taken)}"
            )
