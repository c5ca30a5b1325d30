"""Sets of reward models, trained: any number of them on one trunk and one reading of the pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from srmir_lib.errors import InputError
from srmir_lib.models.parallel import run_in_threads
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.config import RewardSettings, load_settings, override, read_config
from srmir_lib.reward_models.pairs import TokenizedPairs, prefill_key
from srmir_lib.reward_models.pooled import load_pooled_settings
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs
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
    runs: Mapping[str, SetRun], trunk: Trunk, preferences: Mapping, competence: Sequence[str] | None = None
) -> dict[str, dict[str, list[dict]]]:
    """Train every set that is not finished; returns the history of each set's models, by name of the set.

    `preferences["train"]`: rows of prompt, chosen, rejected, category[, margin]. Sets of design `shared` learn from one
    reading of the pairs, on a CPU side by side, each over a module tree of its own. Those of design `separate` train
    one after the other: their trainer draws from the process's random numbers.
    """
    read: dict[tuple, TokenizedPairs] = {}
    for run in sorted(runs.values(), key=lambda run: run.design != "shared"):  # whose pairs serve the others as well
        if (key := prefill_key(run.settings)) not in read:
            kind = PrefilledPairs if run.design == "shared" else TokenizedPairs
            read[key] = kind(trunk, preferences["train"], run.settings)
    jobs, found = {}, {}
    for name, run in runs.items():
        pairs = read[prefill_key(run.settings)]
        how = run.folder, run.categories, run.settings, run.seed, run.training, competence, name
        if run.design == "separate":
            found[name] = fit_separate(pairs, *how)
            continue
        if not (Path(run.folder) / "fit.json").exists():
            pairs.keep("reading")  # here and now, with all threads; finished sets need none of it
        jobs[name] = partial(fit_shared, pairs.with_own_modules(), *how)
    found |= run_in_threads(jobs, trunk.device)
    return {name: found[name] for name in runs}


RESERVED = ("plain", "oracle")  # rows of 03 that are not trained


def fit_objectives(
    before: str | Path,
    base: Trunk | str,
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
    once for all, and the sets train side by side. Of a `pooled` set `base` is the encoder's id or folder, and it learns
    on `device`, from `labelled` responses as well.
    A name or setting that there is not is an `InputError`, before anything is trained.
    """
    config = read_config(before)
    for name, changes in objectives.items():
        if name in RESERVED or not isinstance(changes, Mapping) or not isinstance(changes.get("seed", 0), int):
            raise InputError(
                f"objectives: {name}: {changes}; give another name than {RESERVED}, settings, a whole seed"
            )
    encoder = config["design"] == "pooled"
    reading, settings = load_pooled_settings(before) if encoder else (None, load_settings(before))
    changed = {
        name: override(settings, {key: value for key, value in own.items() if key != "seed"})
        for name, own in objectives.items()
    }
    drawn = {name: seed + own.get("seed", 0) for name, own in objectives.items()}
    if encoder:
        for name, own in changed.items():
            arguments = preferences["train"], folders[name], config["categories"], reading, own, drawn[name]
            fit_pooled(base, labelled, *arguments, device)
        return
    categories, design = config["categories"], config["design"]
    runs = {name: SetRun(folders[name], categories, own, design, seed=drawn[name]) for name, own in changed.items()}
    fit_sets(runs, base, preferences)
