"""Settings of reward models, checked when they are made, and `config.json`, which says what a folder of models is."""

from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.models.loading import base_reference, find_base
from srmir_lib.models.trunk import Trunk

Count = Annotated[int, Field(gt=0)]


LIMITS = ("pcrm_length", "pcrm_cosine")


OBJECTIVES = ("bradley_terry", "margin", *LIMITS)


TARGETS = ("own", "shuffled", "mean")
"""Whose target a pair gets: its own, that of another pair, or the mean of all. The last two are controls: they know the
sizes of the targets and not whose they are."""


KINDS = ("question", "learned")


DESIGNS = ("shared", "separate", "pooled")


ALL = "all"
"""The category of a single reward model for everything."""


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
    targets: str = Field("own", kw_only=True)  # whose margin or limit a pair gets (`TARGETS`)
    similarity_model: str = Field("", kw_only=True)  # pcrm_cosine: a frozen encoder, id or folder; "": the base model
    center_rewards_coefficient: float = Field(0.0, ge=0, kw_only=True)  # pulls a pair's two scores to a sum of zero

    def __post_init__(self):
        """Refuse what contradicts itself; each value for itself was checked before."""
        check_objective(self.objective)
        if self.targets not in TARGETS:
            raise InputError(f"targets: {self.targets!r} is none of {', '.join(TARGETS)}")
        if self.objective == "bradley_terry" and self.targets != "own":
            raise InputError(f"targets: bradley_terry has none that could be {self.targets}; choose margin or pcrm_…")
        if self.similarity_model and self.objective != "pcrm_cosine":
            raise InputError(f"similarity_model: objective {self.objective} does not read it; only pcrm_cosine does")
        if len(self.limit) not in (0, 3):
            raise InputError(f"limit: {self.limit}; give scale, offset and shift, or none for the authors' constants")


@checked
class ProbeSettings:
    """What is asked, and how large an answer may be."""

    kind: str = "question"  # question: its tokens; learned: embeddings, trained
    text: str = " harmful : {category} ?"  # the question; {category} may be missing if there is one model only
    names: dict[str, str] = field(default_factory=dict)  # what it calls a category; else its name in `taxonomy`
    tokens: int = Field(0, ge=0)  # m, of every probe: 0: as many as the longest question has
    rank: int = Field(8, gt=0)
    alpha: int = Field(16, gt=0)  # adapters are scaled by alpha / rank

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"probe: {self.kind!r} is none of {', '.join(KINDS)}")


@checked
class RewardSettings(PairObjective):
    """How each reward model is trained. The notebook's parameters hold the values; there are no others."""

    max_steps: Annotated[int, Field(ge=0)]  # updates of one model
    batch_size: Count  # pairs per update
    learning_rate: Annotated[float, Field(gt=0)]
    lora_rank: Count
    lora_alpha: Count
    max_length: Count  # tokens of the longest allowed conversation; a longer pair is an error, never dropped
    cross_ratio: float = Field(0.0, ge=0)  # training "cross": pairs of other categories, per pair of the model's own
    unknown_ratio: float = Field(0.0, ge=0)  # pairs of no category (benign prompts, say), per pair of the model's own
    averaged_fits: int = Field(1, ge=1)  # fits in different orders of the pairs whose weights are averaged (WARM)
    question: str = ""  # introspective, with {prompt}; its draft is read before scoring; "" asks nothing
    draft_tokens: int = Field(24, gt=0)  # of that draft, at most
    probe: ProbeSettings = field(default_factory=ProbeSettings)  # design shared: what is asked after the text
    keep_gb: float = Field(
        1.5, ge=0
    )  # design shared: states of the trunk kept across epochs, at most; else they are read again

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "probe", replace(self.probe, rank=self.lora_rank, alpha=self.lora_alpha))


def check_objective(objective: str) -> None:
    """Refuse an objective that these reward models cannot be trained for, with the reason."""
    if objective in ("ava_d", "ava_p"):
        raise InputError(
            f"objective: {objective} needs a reward for every token, and these designs give an answer one number; "
            "notebook A1_bayesian_rewards trains it"
        )
    if objective not in OBJECTIVES:
        raise InputError(f"objective: {objective!r} is none of {', '.join(OBJECTIVES)}")


def override(settings, changes: dict):
    """The same settings but for `changes`, such as {"objective": "pcrm_length"}; a wrong one is an `InputError`."""
    known = [entry.name for entry in fields(settings)]
    for name in changes:
        if name not in known:
            raise InputError(f"objectives: there is no setting {name!r}; there are {', '.join(known)}")
    try:
        return replace(settings, **changes)
    except InputError as error:
        raise InputError(f"objectives: {error}") from error


def read_config(folder: str | Path) -> dict:
    """`config.json` of a set of reward models, with its design, categories and their folders checked."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of reward models; run 02_shadow_reward_models")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("categories") or config.get("design") not in DESIGNS:
        raise InputError(f"{folder}/config.json: needs categories and a design out of {', '.join(DESIGNS)}")
    return config


def load_settings(folder: str | Path) -> RewardSettings:
    """The settings that a set in `folder` was trained with, so that another set can be trained alike."""
    config = read_config(folder)
    file = Path(folder) / ("fit.json" if config["design"] == "shared" else f"{config['categories'][0]}/fit.json")
    try:
        settings = dict(read_json(file)["key"]["settings"])
        return RewardSettings(**settings | {"probe": ProbeSettings(**settings["probe"])})
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{file}: no settings ({error!r}); train the set again (02)") from error


def pairs_seen(folder: str | Path) -> int:
    """How many different pairs the models of a set were trained on, added up over the models."""
    config, folder = read_config(folder), Path(folder)
    files = ["fit.json"] if config["design"] == "shared" else [f"{name}/fit.json" for name in config["categories"]]
    return sum(count for file in files for count in read_json(folder / file)["key"]["pairs"].values())


def kept_fit(folder: Path, key: dict) -> dict:
    """`fit.json` of a finished fit in `folder` if it has this `key`: then it is kept, not made again. Else nothing."""
    fit = read_json(folder / "fit.json") if (folder / "fit.json").exists() else {}
    return fit if fit.get("key") == key else {}


def base_of(trunk: Trunk, final: Path) -> dict:
    """What `config.json` says of a base model; `final`: where the folder will lie, for the relative path."""
    return base_reference(trunk.base_model, final, trunk.sha256) | {"dtype": trunk.dtype}


def find_trunk(folder: Path, config: dict, trunk: Trunk | str = "auto", base_model: str | None = None) -> Trunk:
    """The trunk that models in `folder` score with: `trunk`, or what `config` names, loaded on the device `trunk`.

    `base_model`: where the base model lies now, if it was moved. Another base model, or another precision, than the one
    trained on is an `InputError`.
    """
    missing = [key for key in ("base_model", "base_is_folder", "base_sha256", "dtype") if key not in config]
    if missing:
        raise InputError(f"{folder}/config.json: lacks {', '.join(missing)}; train the set again (02)")
    if not isinstance(trunk, Trunk):
        return Trunk.load(find_base(folder, config, base_model), trunk, config["dtype"])
    find_base(folder, config, trunk.base_model, trunk.sha256)
    if trunk.dtype != config["dtype"]:
        known = f"trained on weights in {config['dtype']}, not {trunk.dtype}"
        raise InputError(f"{folder}: {known}; give Trunk.load dtype={config['dtype']!r}")
    return trunk


def write_config(where: Path, final: Path, design: str, trunk: Trunk, categories, settings, training: str) -> None:
    """`config.json` of a set in the folder `where`; `final` is where that folder will lie, for the relative path."""
    config = {
        "design": design,
        "categories": list(categories),
        **base_of(trunk, final),
        "objective": settings.objective,
        "question": settings.question,
        "draft_tokens": settings.draft_tokens,
        "training": training,
        **({"probe": asdict(settings.probe)} if design == "shared" else {}),
    }
    write_json(where / "config.json", config)
