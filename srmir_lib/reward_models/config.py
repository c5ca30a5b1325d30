"""`config.json` and `fit.json`: what a folder of reward models is, and what it was trained with."""

from pathlib import Path

from srmir_lib.artifacts import as_written, read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.models.loading import base_reference, find_base
from srmir_lib.models.trunk import Trunk
from srmir_lib.settings.reward_training import RewardSettings

DESIGNS = ("shared", "separate", "pooled")

KINDS = {"categories": list, "base_model": str, "dtype": str}
"""Types of what loading does not look at otherwise."""


def read_config(folder: str | Path) -> dict:
    """`config.json` of a set of reward models, with its design, categories and their folders checked."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of reward models; run 02_shadow_reward_models")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("categories") or config.get("design") not in DESIGNS:
        raise InputError(f"{folder}/config.json: needs categories and a design out of {', '.join(DESIGNS)}")
    wrong = [name for name, kind in KINDS.items() if not isinstance(config.get(name, kind()), kind)]
    wrong += [] if all(isinstance(name, str) for name in config["categories"]) else ["categories"]
    if wrong:
        raise InputError(f"{folder}/config.json: {wrong[0]} is not as it was written; train the set again (02)")
    return config


def load_settings(folder: str | Path) -> RewardSettings:
    """The settings that a set in `folder` was trained with, so that another set can be trained alike."""
    config = read_config(folder)
    file = Path(folder) / ("fit.json" if config["design"] == "shared" else f"{config['categories'][0]}/fit.json")
    with as_written(file, "no settings", "train the set again (02)"):
        return RewardSettings(**read_json(file)["key"]["settings"])


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
        fix = f"give Trunk.load dtype={config['dtype']!r}, or train the set again (02) on such a processor as this"
        raise InputError(f"{folder}: {known}; {fix}")
    return trunk


def write_config(where: Path, final: Path, design: str, trunk: Trunk, categories, settings, training: str) -> None:
    """`config.json` of a set in the folder `where`; `final` is where that folder will lie, for the relative path."""
    config = {
        "design": design,
        "categories": list(categories),
        **base_of(trunk, final),
        "objective": settings.objective,
        "training": training,
        **({"probe": settings.probe.model_dump()} if design == "shared" else {}),
    }
    write_json(where / "config.json", config)
