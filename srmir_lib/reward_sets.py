"""Several sets of reward models, trained on the same pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from srmir_lib.pair_states import PairStates, reading_of
from srmir_lib.parallel import side_by_side
from srmir_lib.reward_training import RewardSettings
from srmir_lib.separate_rewards import fit_separate
from srmir_lib.shared_rewards import fit_shared


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
    states: PairStates | None = None,
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
        reading = reading_of(run.settings)
        if reading not in read:
            hidden = any(own.probe.kind == "head" for own in shared if reading_of(own) == reading)
            read[reading] = PairStates(base_model, preferences["train"], run.settings, device, "reading", hidden)
        if not (run.folder / "fit.json").exists():
            read[reading].keep()  # here and now, with all threads; finished sets need none of it
        jobs[name] = partial(fit_shared, *arguments, competence, name, read[reading].twin())
    if jobs:
        found |= side_by_side(jobs, next(iter(read.values())).trunk.device)
    return {name: found[name] for name in runs}
