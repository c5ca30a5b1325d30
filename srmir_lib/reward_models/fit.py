"""The reward models of a set trained again, with another objective and nothing else changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from srmir_lib.errors import InputError
from srmir_lib.models.parallel import run_in_threads
from srmir_lib.reward_models.config import RewardSettings, load_settings, override, read_config
from srmir_lib.reward_models.pooled import load_pooled_settings
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs, prefill_key
from srmir_lib.reward_models.separate_training import fit_separate
from srmir_lib.reward_models.shared import fit_shared


@dataclass(frozen=True)
class SetRun:
    """One set to train: where it goes, its models, and how they are trained."""

    folder: Path
    categories: Sequence[str]
    settings: RewardSettings
    design: str = "shared"  # or separate
    training: str = "own"  # which pairs a model sees, as in `select_pairs`
    seed: int = 0


def fit_sets(
    runs: Mapping[str, SetRun],
    base_model: str | Path,
    preferences: Mapping,
    competence: Sequence[str] | None = None,
    device: str = "auto",
    states: PrefilledPairs | None = None,
) -> dict[str, dict[str, list[dict]]]:
    """Train every set that is not finished; returns the history of each set's models, by name of the set.

    Sets of design `shared` learn from one reading of the pairs (`states`, if they have been read so already), on a CPU
    side by side, each over a module tree of its own. Those of design `separate` train one after the other: their
    trainer draws from the process's random numbers.
    """
    shared = [run.settings for run in runs.values() if run.design == "shared"]
    read = {} if states is None else {states.reading: states}
    jobs, found = {}, {}
    for name, run in runs.items():
        arguments = base_model, preferences, run.folder, run.categories, run.settings, run.seed, run.training, device
        if run.design == "separate":
            found[name] = fit_separate(*arguments, competence, name)
            continue
        reading = prefill_key(run.settings)
        if reading not in read:
            hidden = any(own.probe.kind == "head" for own in shared if prefill_key(own) == reading)
            read[reading] = PrefilledPairs(base_model, preferences["train"], run.settings, device, "reading", hidden)
        if not (run.folder / "fit.json").exists():
            read[reading].keep()  # here and now, with all threads; finished sets need none of it
        jobs[name] = partial(fit_shared, *arguments, competence, name, read[reading].with_own_modules())
    if jobs:
        found |= run_in_threads(jobs, next(iter(read.values())).trunk.device)
    return {name: found[name] for name in runs}


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
        reading, settings = load_pooled_settings(before)
        for name, own in {name: override(settings, changes) for name, changes in runs.items()}.items():
            arguments = preferences["train"], folders[name], config["categories"], reading, own, drawn[name]
            fit_pooled(base_model, labelled, *arguments, device)
        return
    settings = load_settings(before)
    fit_sets(
        {
            name: SetRun(folders[name], config["categories"], own, config["design"], "own", drawn[name])
            for name, own in {name: override(settings, changes) for name, changes in runs.items()}.items()
        },
        base_model,
        preferences,
        device=device,
    )
