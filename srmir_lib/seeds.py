"""The same notebooks with seed after seed: one is an anecdote. Every result is one small tracked file.

`outputs/reference/seeds/<preset>/<seed>/<notebook>.json` holds a notebook's metrics and what made them, so that hours
of work add up over several sittings and machines. What is recorded with the same parameters is not run again.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from srmir_lib.artifacts import InputError, read_json, write_json
from srmir_lib.manifest import read_manifest
from srmir_lib.notebook import GIVEN_BY_RUNNER
from srmir_lib.run import Runner, Task

RECORDS = Path("outputs/reference/seeds")
KEPT = ("notebook", "seed", "started", "seconds", "git_commit", "git_dirty", "versions", "cpu", "threads")


def run_seeds(
    preset: str,
    seeds: Sequence[int],
    notebooks: Iterable[str] = (),
    root: str | Path | None = None,
    again: bool = False,
    say=print,
) -> Iterator[str]:
    """Run the notebooks of a preset for every seed and record their metrics; yields a line a seed.

    Nothing is run before every parameter of every seed was checked. `again` runs what is recorded once more.
    """
    if not seeds or any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {list(seeds)}; give different whole numbers from 0 on")
    runners = {seed: Runner(preset, root, seed) for seed in seeds}
    plans = {seed: runner.plan(runner.select(list(notebooks), everything=True)) for seed, runner in runners.items()}
    for seed, tasks in plans.items():
        runner = runners[seed]
        if not again and all(_recorded(runner, task) for task in tasks):
            yield f"seed {seed}: recorded already"
            continue
        for result in runner.run(tasks, say=say):
            task = next(task for task in tasks if task.name == result.name)
            _record(runner, task)
            say(f"{task.name}: {result.state}, {result.seconds:.0f} s")
        yield f"seed {seed}: recorded in {runner.shown(_file(runner, tasks[0]).parent)}"


def read_seeds(folder: str | Path) -> dict[int, dict[str, float]]:
    """All metrics on record in `folder` (`outputs/reference/seeds/<preset>`): seed -> {"<notebook>/<metric>": value}.

    No record, or a damaged one, is an `InputError`.
    """
    folder = Path(folder)
    found: dict[int, dict[str, float]] = {}
    for file in sorted(folder.glob("*/*.json")):
        record = read_json(file)
        try:
            seed, notebook, metrics = int(record["seed"]), record["notebook"], dict(record["metrics"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: not a record of a seed ({error!r}); delete it and run the seed again") from error
        found.setdefault(seed, {}).update({f"{notebook}/{name}": value for name, value in metrics.items()})
    if not found:
        raise InputError(f"{folder}: no records; run `srmir seeds {folder.name} --seeds 2 3 4 5 6`")
    return dict(sorted(found.items()))


def _file(runner: Runner, task: Task) -> Path:
    return runner.root / RECORDS / runner.preset / str(runner.seed) / f"{task.name}.json"


def _parameters(task: Task) -> dict:
    return {name: value for name, value in task.parameters.items() if name not in (*GIVEN_BY_RUNNER, "seed")}


def _recorded(runner: Runner, task: Task) -> bool:
    """Whether these very parameters are on record; by whatever commit, which the record names."""
    file = _file(runner, task)
    return file.is_file() and read_json(file).get("parameters") == _parameters(task)


def _record(runner: Runner, task: Task) -> None:
    """Keep a finished stage's metrics, and what a reader needs to judge them."""
    folder = runner.outputs / task.name
    manifest, metrics = read_manifest(folder), folder / "metrics.json"
    facts = {name: manifest[name] for name in KEPT} | {"preset": runner.preset, "parameters": _parameters(task)}
    write_json(_file(runner, task), facts | {"metrics": read_json(metrics) if metrics.is_file() else {}})
