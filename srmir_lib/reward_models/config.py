"""What the designs of reward models share before they train: settings, the choice of pairs, tokens, the folder."""

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.models.loading import fingerprint

ALL = "all"
"""The category of a single reward model for everything."""


DESIGNS = ("shared", "separate", "pooled")


THINKING = ("question", "draft_tokens")


def read_config(folder: str | Path) -> dict:
    """`config.json` of a set of reward models, with its design, categories and their folders checked."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of reward models; run 02_shadow_reward_models")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("categories") or config.get("design") not in DESIGNS:
        raise InputError(f"{folder}/config.json: needs categories and a design out of {', '.join(DESIGNS)}")
    return config


def check_base(folder: Path, config: dict, base_model: str | None = None) -> str:
    """The base model of a set: `base_model`, else the path in its config (relative to the set's folder) or hub id."""
    missing = [key for key in ("base_model", "base_is_folder", "base_sha256") if key not in config]
    if missing:
        raise InputError(f"{folder}/config.json: lacks {', '.join(missing)}; train the set again (02)")
    recorded = config["base_model"]
    base = base_model or (os.path.normpath(folder / recorded) if config["base_is_folder"] else recorded)
    if config["base_is_folder"] and not Path(base).is_dir():
        raise InputError(f"{base}: the base model of {folder} is not there; put it back or pass base_model")
    if fingerprint(base) != config["base_sha256"]:
        raise InputError(
            f"{base}: not the base model that {folder} was trained on (hash mismatch); train the set again"
        )
    return base


def override(settings, changes: dict):
    """The same settings but for `changes`, such as {"objective": "pcrm_length"}; an unknown name is an `InputError`."""
    known = [entry.name for entry in fields(settings)]
    for name in changes:
        if name not in known:
            raise InputError(f"objectives: there is no setting {name!r}; there are {', '.join(known)}")
    try:
        return replace(settings, **changes)
    except (TypeError, AttributeError) as error:
        raise InputError(f"objectives: {dict(changes)} holds a value of the wrong type ({error})") from error


def pairs_seen(folder: str | Path) -> int:
    """How many different pairs the models of a set were trained on, added up over the models."""
    config, folder = read_config(folder), Path(folder)
    if config["design"] == "shared":
        return sum(read_json(folder / "fit.json")["key"]["pairs"].values())
    return sum(read_json(folder / name / "fit.json")["key"]["pairs"] for name in config["categories"])


def write_config(
    where: Path, final: Path, design: str, base_model, base_sha256: str, categories, settings, training: str
) -> None:
    """`config.json` of a set in the folder `where`; `final` is where that folder will lie, for the relative path."""
    folder = Path(base_model)
    where.mkdir(parents=True, exist_ok=True)
    config = {
        "design": design,
        "categories": list(categories),
        "base_model": os.path.relpath(folder.resolve(), final.resolve()) if folder.is_dir() else str(base_model),
        "base_is_folder": folder.is_dir(),
        "base_sha256": base_sha256,
        "objective": settings.objective,
        "question": settings.question,
        "draft_tokens": settings.draft_tokens,
        "training": training,
        **({"probe": asdict(settings.probe)} if design == "shared" else {}),
    }
    write_json(where / "config.json", config)


KINDS = ("question", "learned", "head")


@dataclass(frozen=True)
class ProbeSettings:
    """What is asked, and how large an answer may be."""

    kind: str = "question"  # question: its tokens; learned: embeddings, trained; head: no probe, a head on the text
    text: str = " harmful : {category} ?"  # the question, with {category}
    tokens: int = 4  # m: the last m tokens of the question, the same number for every category
    rank: int = 8
    alpha: int = 16  # adapters are scaled by alpha / rank


@dataclass(frozen=True)
class RewardSettings:
    """How each reward model is trained. The notebook's parameters hold the values; there are no others."""

    max_steps: int  # updates of one model
    batch_size: int  # pairs per update
    learning_rate: float
    lora_rank: int
    lora_alpha: int
    max_length: int  # tokens of the longest allowed conversation; a longer pair is an error, never dropped
    cross_ratio: float = 0.0  # training "cross": pairs of other categories, per pair of the model's own
    unknown_ratio: float = 0.0  # pairs of no category (benign prompts, say), per pair of the model's own
    objective: str = "bradley_terry"  # "margin": the gap must exceed the column `margin`; "pcrm_…": stay below a limit
    limit: list[float] = field(default_factory=list)  # objective pcrm_…: its scale, offset, shift; none: the authors'
    limit_cap: float = 30.0  # objective pcrm_…: the largest limit
    targets: str = "own"  # whose margin or limit a pair gets: its own; "shuffled", another's; "mean", that of all
    similarity_model: str = ""  # objective pcrm_cosine: a frozen encoder, id or folder; "": the base model
    center_rewards_coefficient: float = 0.0  # pulls the two scores of a pair towards a sum of zero
    averaged_fits: int = 1  # fits from one start, in different orders of the pairs, whose weights are averaged (WARM)
    question: str = ""  # an introspective question with {prompt}, whose draft is read before judging; "" asks nothing
    draft_tokens: int = 24  # of that draft, at most
    bf16: bool = False
    probe: ProbeSettings = field(default_factory=ProbeSettings)  # design shared: what is asked after the text
    batch_tokens: int = 8192  # design shared: tokens in one forward pass of the trunk
    keep_gb: float = 1.5  # design shared: states of the trunk kept across epochs, at most; else they are read again

    def __post_init__(self):
        check_pair_objective(self)
        if self.averaged_fits < 1:
            raise InputError(f"averaged_fits: {self.averaged_fits} must be at least 1")
        object.__setattr__(self, "probe", replace(self.probe, rank=self.lora_rank, alpha=self.lora_alpha))


def load_settings(folder: str | Path) -> RewardSettings:
    """The settings that a set in `folder` was trained with, so that another set can be trained alike."""
    config = read_config(folder)
    file = Path(folder) / ("fit.json" if config["design"] == "shared" else f"{config['categories'][0]}/fit.json")
    try:
        settings = dict(read_json(file)["key"]["settings"])
        return RewardSettings(**settings | {"probe": ProbeSettings(**settings["probe"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: no settings ({error!r}); train the set again (02)") from error


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
