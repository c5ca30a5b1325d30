"""The reward models of a set trained again, with another objective and nothing else changed."""

from collections.abc import Mapping
from pathlib import Path

from srmir_lib.artifacts import InputError
from srmir_lib.reward_model import read_config
from srmir_lib.reward_sets import SetRun, fit_sets
from srmir_lib.reward_training import changed, settings_of

RESERVED = ("plain", "oracle")  # rows of 03 that are not trained


def fit_objectives(
    before: str | Path,
    base_model: str | Path,
    preferences: Mapping,
    objectives: Mapping[str, Mapping],
    folders: Mapping[str, Path],
    seed: int = 0,
    device: str = "auto",
    labelled=None,
) -> None:
    """Train the models of the set `before` once more for every objective, in `folders[name]`.

    `objectives`: name -> settings that differ from those of `before`; "seed" is added to `seed` and draws other heads,
    another order of the pairs and another sample of those of no category. The trunk of a `shared` set reads the pairs
    once for all, and the sets train side by side. A `pooled` set learns from `labelled` responses as well.
    A name or setting that there is not is an `InputError`, before anything is trained.
    """
    config = read_config(before)
    for name, changes in objectives.items():
        if name in RESERVED or not isinstance(changes, Mapping) or not isinstance(changes.get("seed", 0), int):
            raise InputError(
                f"objectives: {name}: {changes}; give another name than {RESERVED}, settings, a whole seed"
            )
    runs = {name: {key: value for key, value in own.items() if key != "seed"} for name, own in objectives.items()}
    drawn = {name: seed + own.get("seed", 0) for name, own in objectives.items()}
    if config["design"] == "pooled":
        from srmir_lib import encoder_settings
        from srmir_lib.encoder_training import fit_pooled

        reading, settings = encoder_settings.settings_of(before)
        for name, own in {name: changed(settings, changes) for name, changes in runs.items()}.items():
            arguments = preferences["train"], folders[name], config["categories"], reading, own, drawn[name]
            fit_pooled(base_model, labelled, *arguments, device)
        return
    settings = settings_of(before)
    fit_sets(
        {
            name: SetRun(folders[name], config["categories"], own, config["design"], "own", drawn[name])
            for name, own in {name: changed(settings, changes) for name, changes in runs.items()}.items()
        },
        base_model,
        preferences,
        device=device,
    )
