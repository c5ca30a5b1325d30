"""How the encoder of a `pooled` set is fine-tuned and how it reads: settings from parameter files and from a set."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import get_origin

from srmir_lib.artifacts import InputError, read_json
from srmir_lib.encoder_rewards import PairReading
from srmir_lib.pair_targets import check_pair_objective


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How the encoder is fine-tuned. The notebook's parameters hold the values; what has one here is the plain case."""

    epochs: float  # passes over labelled responses and pairs together
    batch_size: int  # examples per update; a pair is one example
    learning_rate: float  # of the top layer
    head_learning_rate: float  # of the new outputs
    layer_decay: float  # each layer below the top learns this much slower than the one above it
    warmup: float  # share of the updates over which the learning rate rises
    weight_decay: float
    pair_weight: float  # weight of a preference pair next to a labelled response
    mean_weight: float  # weight of the loss on the mean of all outputs, next to the loss on the routed one
    averaging: float  # decay of the running average of the weights that is kept (0: keep the last weights)
    bf16: bool  # bfloat16 matrix products; faster where the processor has them
    objective: str = "bradley_terry"  # of the pairs, as in `RewardSettings`, and so the next five
    limit: list[float] = field(default_factory=list)
    limit_cap: float = 30.0
    targets: str = "own"
    similarity_model: str = ""  # "": the encoder before it is trained
    center_rewards_coefficient: float = 0.0

    def __post_init__(self):
        check_pair_objective(self)


def from_parameters(kind: type, values: Mapping, name: str):
    """A `PairReading` or `EncoderSettings` from the mapping that a parameter file holds, checked like any parameter.

    A missing, unknown or wrongly typed entry is an `InputError` that names it.
    """
    wanted = {field.name: field for field in fields(kind)}
    missing = [
        key for key in wanted if key not in values and wanted[key].default is wanted[key].default_factory is MISSING
    ]
    if missing or values.keys() - wanted.keys():
        unknown = ", ".join(sorted(values.keys() - wanted.keys())) or "nothing unknown"
        raise InputError(f"{name}: lacks {', '.join(missing) or 'nothing'}; has {unknown}; give {', '.join(wanted)}")
    for key, value in values.items():
        kind_of = get_origin(wanted[key].type) or wanted[key].type
        if type(value) is not kind_of and not (kind_of is float and type(value) is int):
            hint = "; in YAML write 5.0e-5, not 5e-5" if isinstance(value, str) else ""
            raise InputError(f"{name}.{key}: {value!r} is not of type {kind_of.__name__}{hint}")
    return kind(**values)


def pooled_settings(
    reading: Mapping, fine_tuning: Mapping, others: Mapping = MappingProxyType({})
) -> tuple[PairReading, EncoderSettings]:
    """Both halves of `fit_pooled`'s settings from the mappings of a parameter file.

    `others`: the settings of the other designs; what an encoder would not read there is an `InputError`.
    """
    elsewhere, never = "an encoder's stands in fine_tuning", "an encoder's fits are not averaged"
    unread = {
        "objective": ("bradley_terry", elsewhere),
        "center_rewards_coefficient": (0.0, elsewhere),
        "averaged_fits": (1, never),
    }
    for name, (usual, fix) in unread.items():
        if others.get(name, usual) != usual:
            raise InputError(f"{name}: {others[name]!r} is not read with design pooled; {fix}")
    return from_parameters(PairReading, reading, "reading"), from_parameters(
        EncoderSettings, fine_tuning, "fine_tuning"
    )


def settings_of(folder: str | Path) -> tuple[PairReading, EncoderSettings]:
    """What a pooled set in `folder` was trained with, so that another set can be trained alike."""
    config = read_json(Path(folder) / "config.json")
    try:
        return PairReading(**config["reading"]), EncoderSettings(**config["settings"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/config.json: no settings ({error!r}); train the set again (02)") from error
