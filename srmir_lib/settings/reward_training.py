"""What a fit of reward models is told, checked when it is made: its objective, its probe, and the rest.

Notebooks make these from settings of their own (`reward_models`); folders of models keep them, to train others alike.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import field, fields, replace
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from srmir_lib.errors import InputError

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

LIMITS = ("pcrm_length", "pcrm_cosine")
Objective = Literal["bradley_terry", "margin", "pcrm_length", "pcrm_cosine"]
OBJECTIVES = get_args(Objective)

Targets = Literal["own", "shuffled", "mean"]
"""Whose target a pair gets: its own, that of another pair, or the mean of all. The last two are controls: they know the
sizes of the targets and not whose they are."""


RESERVED = ("plain", "oracle")
"""Rows of 03 that are not trained."""


def checked(cls):
    """A frozen pydantic dataclass, strict about types, whose first wrong value is an `InputError` of one line."""
    cls = dataclass(cls, frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
    make = cls.__init__

    def __init__(self, *args, **named):
        try:
            make(self, *args, **named)
        except ValidationError as error:
            found = error.errors()[0]
            where, says = ".".join(map(str, found["loc"])), found["msg"].removeprefix("Value error, ")
            raise InputError(f"{where}: {found['input']!r}: {says}" if where else says) from error

    cls.__init__ = __init__
    return cls


@checked
class PairObjective:
    """What training asks of the gap between a pair's two scores."""

    objective: str = Field("bradley_terry", kw_only=True)  # "margin": exceed the column `margin`; "pcrm_…": stay below
    limit: list[float] = Field(default_factory=list, kw_only=True)  # pcrm_…: scale, offset, shift; none: the authors'
    limit_cap: float = Field(30.0, gt=0, kw_only=True)  # pcrm_…: the largest limit
    targets: str = Field("own", kw_only=True)  # whose margin or limit a pair gets (`Targets`)
    similarity_model: str = Field("", kw_only=True)  # pcrm_cosine: a frozen encoder, id or folder; "": the base model
    center_rewards_coefficient: float = Field(0.0, ge=0, kw_only=True)  # pulls a pair's two scores to a sum of zero

    def __post_init__(self):
        """Refuse what contradicts itself; each value for itself was checked before."""
        check_objective(self.objective)
        if self.targets not in get_args(Targets):
            raise InputError(f"targets: {self.targets!r} is none of {', '.join(get_args(Targets))}")
        if self.objective == "bradley_terry" and self.targets != "own":
            raise InputError(f"targets: bradley_terry has none that could be {self.targets}; choose margin or pcrm_…")
        if self.similarity_model and self.objective != "pcrm_cosine":
            raise InputError(f"similarity_model: objective {self.objective} does not read it; only pcrm_cosine does")
        if len(self.limit) not in (0, 3):
            raise InputError(f"limit: {self.limit}; give scale, offset and shift, or none for the authors' constants")


@checked
class ProbeSettings:
    """What is asked, and how large an answer may be."""

    text: str = " harmful : {category} ?"  # the question; {category} may be missing if there is one model only
    names: dict[str, str] = field(default_factory=dict)  # what it calls a category; else its name in `taxonomy`
    tokens: int = Field(0, ge=0)  # m, of every probe: 0: as many as the longest question has
    rank: int = Field(8, gt=0)
    alpha: int = Field(16, gt=0)  # adapters are scaled by alpha / rank


@checked
class RewardSettings(PairObjective):
    """How each reward model is trained. The notebook's parameters hold the values; there are no others."""

    max_steps: Annotated[int, Field(ge=0)]  # updates of one model
    batch_size: Count  # pairs per update
    learning_rate: Positive
    lora_rank: Count
    lora_alpha: Count
    max_length: Count  # tokens of the longest allowed conversation; a longer pair is an error, never dropped
    cross_ratio: float = Field(0.0, ge=0)  # training "cross": pairs of other categories, per pair of the model's own
    unknown_ratio: float = Field(0.0, ge=0)  # pairs of no category (benign prompts, say), per pair of the model's own
    averaged_fits: int = Field(1, ge=1)  # fits in different orders of the pairs whose weights are averaged (WARM)
    question: str = ""  # introspective, with {prompt}; its draft is read before scoring; "" asks nothing
    draft_tokens: int = Field(24, gt=0)  # of that draft, at most
    probe: ProbeSettings = field(default_factory=ProbeSettings)  # design shared: what is asked after the text
    keep_gb: float = Field(1.5, ge=0)  # design shared: states kept across epochs, at most; others are read again

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "probe", replace(self.probe, rank=self.lora_rank, alpha=self.lora_alpha))


@checked
class EncoderSettings(PairObjective):
    """How the encoder is fine-tuned. The notebook's parameters hold the values; what has one here is the plain case."""

    epochs: Positive  # passes over labelled responses and pairs together
    batch_size: Count  # examples per update; a pair is one example
    learning_rate: Positive  # of the top layer
    head_learning_rate: Positive  # of the new outputs
    layer_decay: Share  # each layer below the top learns this much slower than the one above it
    warmup: Share  # share of the updates over which the learning rate rises
    weight_decay: Weight
    pair_weight: Weight  # weight of a preference pair next to a labelled response
    mean_weight: Weight  # weight of the loss on the mean of all outputs, next to the loss on the routed one
    averaging: Annotated[float, Field(ge=0, lt=1)]  # decay of the running average of the weights that is kept (0: none)
    bf16: bool  # bfloat16 matrix products; faster where the processor has them


def check_objective(objective: str) -> None:
    """Refuse an objective that these reward models cannot be trained for, with the reason."""
    if objective in ("ava_d", "ava_p"):
        raise InputError(
            f"objective: {objective} needs a reward for every token, and these designs give an answer one number; "
            "notebook A1_bayesian_rewards trains it"
        )
    if objective not in OBJECTIVES:
        raise InputError(f"objective: {objective!r} is none of {', '.join(OBJECTIVES)}")


def override(settings, changes: Mapping, where: str = "objectives"):
    """The same settings but for `changes`, such as {"objective": "pcrm_length"}; a wrong one is an `InputError` that
    begins with `where`."""
    known = [entry.name for entry in fields(settings)]
    for name in changes:
        if name not in known:
            raise InputError(f"{where}: there is no setting {name!r}; there are {', '.join(known)}")
    try:
        return replace(settings, **changes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def check_objectives(objectives: Mapping[str, Mapping], pooled: bool = False) -> None:
    """Refuse what no set of reward models can be trained with. `objectives`: name -> what differs from the settings of
    another set, which need not be known, and a "seed". In doubt they are a trunk's or, if `pooled`, an encoder's.
    """
    check_folders("objectives", objectives, RESERVED)
    plain = [
        RewardSettings(1, 1, 1.0, 1, 1, 1, objective="pcrm_cosine"),  # which reads every setting
        EncoderSettings(1.0, 1, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, False, objective="pcrm_cosine"),
    ]
    for name, changes in objectives.items():
        if not isinstance(changes, Mapping) or type(changes.get("seed", 0)) is not int:
            raise InputError(f"objectives: {name}: {changes}; write settings by name, and a seed as a whole number")
        own = without_seed(changes)
        kinds = plain[::-1] if pooled else plain
        override(max(kinds, key=lambda one: sum(hasattr(one, key) for key in own)), own, f"objectives: {name}")


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


def check_reading(max_tokens: int, prompt_tokens: int) -> None:
    """Refuse an encoder's lengths that leave no room for a response."""
    if prompt_tokens < 2 or max_tokens < prompt_tokens + 16:
        raise InputError(f"max_tokens: {max_tokens} leaves no room for a response after prompt_tokens {prompt_tokens}")
