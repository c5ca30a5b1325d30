"""Sets of reward models, trained: any number of them on one trunk and one reading of the pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from srmir_lib.errors import InputError
from srmir_lib.models.parallel import run_in_threads
from srmir_lib.models.processes import check_processes
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.config import load_settings, pairs_seen, read_config
from srmir_lib.reward_models.pairs import TokenizedPairs
from srmir_lib.reward_models.pooled import PairTokenizer, load_pooled_settings
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs
from srmir_lib.reward_models.separate_training import fit_separate
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.reward_models.shared import fit_shared
from srmir_lib.settings.reward_models import ShadowSettings
from srmir_lib.settings.reward_training import (
    EncoderSettings,
    RewardSettings,
    check_objectives,
    without_seed,
)


@dataclass(frozen=True)
class SetRun:
    """One set to train: where it goes, its models, and how they are trained."""

    folder: Path
    categories: Sequence[str]
    settings: RewardSettings | EncoderSettings
    design: str = "shared"  # or separate, or pooled
    training: str = "own"  # which pairs a model sees, as in `select_pairs`
    seed: int = 0
    reading: PairTokenizer | None = None  # design pooled: how a pair becomes tokens


def planned_sets(
    settings: ShadowSettings, categories: Sequence[str], folder_of: Callable[[str], Path]
) -> dict[str, SetRun]:
    """The sets that notebook 02 trains, each in the folder `folder_of(name)`."""
    check_processes(settings.num_processes)
    if other := [name for name in settings.lora if name not in categories]:
        raise InputError(f"lora: no pairs of {', '.join(other)}; there are those of {', '.join(categories)}")
    reading = PairTokenizer.of(settings.reading) if settings.design == "pooled" else None
    plan = settings.sets(categories)
    return {name: SetRun(folder_of(name), *how, settings.seed, reading) for name, how in plan.items()}


def fit_sets(
    runs: Mapping[str, SetRun],
    base: Trunk | str,
    preferences: Mapping,
    competence: Sequence[str] | None = None,
    labelled=None,
    device: str = "auto",
) -> dict[str, dict[str, list[dict]] | list[dict]]:
    """Train every set that is not finished; returns the history of each set's models, by name of the set.

    `preferences["train"]`: rows of prompt, chosen, rejected, category[, margin]. Sets of design `shared` learn from one
    reading of the pairs, on a CPU side by side, each over a module tree of its own. Those of design `separate` train
    one after the other: their trainer draws from the process's random numbers. For those of design `pooled` `base` is
    an encoder's id or folder; they learn on `device`, from `labelled` responses as well, and have one history.
    """
    read: dict[int, TokenizedPairs] = {}  # by the longest text that is allowed
    asking = [run for run in runs.values() if run.design != "pooled"]
    for run in sorted(asking, key=lambda run: run.design != "shared"):  # whose pairs serve the others as well
        if (longest := run.settings.max_length) not in read:
            kind = PrefilledPairs if run.design == "shared" else TokenizedPairs
            read[longest] = kind(base, preferences["train"], run.settings)
    jobs, found = {}, {}
    for name, run in runs.items():
        if run.design == "pooled":
            how = run.folder, run.categories, run.reading, run.settings, run.seed, device
            found[name] = fit_pooled(base, labelled, preferences["train"], *how)
            continue
        pairs = read[run.settings.max_length]
        how = run.folder, run.categories, run.settings, run.seed, run.training, competence, name
        if run.design == "separate":
            found[name] = fit_separate(pairs, *how)
            continue
        if not (Path(run.folder) / "fit.json").exists():
            pairs.keep("reading")  # here and now, with all threads; finished sets need none of it
        jobs[name] = partial(fit_shared, pairs.with_own_modules(), *how)
    found |= run_in_threads(jobs, base.device) if jobs else {}
    return {name: found[name] for name in runs}


def fit_lora_rivals(
    settings: ShadowSettings, base: Trunk, preferences: Mapping, categories: Sequence[str], folder: Path
) -> ShadowRewardModels:
    """LoRA classifiers (design `separate`) of the categories `settings.lora`, each from the pairs that its probe learns
    from beside those of the other `categories`, in as many updates; a finished one in `folder` is kept."""
    run = SetRun(folder, settings.lora, settings.rival(), "separate", seed=settings.seed)
    fit_sets({"LoRA rivals": run}, base, preferences, categories)
    return ShadowRewardModels.load(folder, base)


def budgets(runs: Mapping[str, SetRun], history: Mapping[str, Mapping[str, Sequence[Mapping]]]) -> list[dict]:
    """What each of the trained sets was given and reached, a row a set: its models, their updates in sum, pairs an
    update, different pairs seen (in sum), and the mean accuracy on the pairs of the last update."""
    rows = []
    for name, run in runs.items():
        last = [history[name][model][-1]["accuracy"] for model in run.categories]
        row = {"set": name, "models": len(last), "updates": run.settings.max_steps * len(last)}
        row |= {"pairs/update": run.settings.batch_size, "pairs seen": pairs_seen(run.folder)}
        rows.append(row | {"accuracy, last batch": sum(last) / len(last)})
    return rows


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
    check_objectives(objectives, config["design"] == "pooled")
    reading, settings = _trained_with(before)
    runs = {}
    for name, own in objectives.items():
        changed = settings.changed(f"objectives: {name}", **without_seed(own))
        how = config["categories"], changed, config["design"], "own", seed + own.get("seed", 0), reading
        runs[name] = SetRun(folders[name], *how)
    fit_sets(runs, base, preferences, labelled=labelled, device=device)


def other_differences(folder: str | Path, before: str | Path, changes: Mapping) -> list[str]:
    """Names of the settings in which the set in `folder` differs from the set `before`, but for the `changes` that
    `fit_objectives` was asked for."""
    (reads, used), (read, settings) = _trained_with(folder), _trained_with(before)
    asked = settings.changed(**without_seed(changes))
    differ = [name for name, value in asked if getattr(used, name) != value]
    return differ + ["reading"] * (reads != read)


def _trained_with(folder: str | Path) -> tuple[PairTokenizer | None, RewardSettings | EncoderSettings]:
    """How a finished set reads pairs (design pooled), and its settings."""
    pooled = read_config(folder)["design"] == "pooled"
    return load_pooled_settings(folder) if pooled else (None, load_settings(folder))
