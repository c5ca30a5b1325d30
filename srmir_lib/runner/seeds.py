"""The same notebooks with seed after seed: one is an anecdote. Every result is one small tracked file.

`outputs/reference/seeds/<preset>/<seed>/<notebook>.json` holds a notebook's metrics and what made them, so that hours
of work add up over several runs and machines. What is recorded with the same parameters is not run again.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from srmir_lib.artifacts import as_written, digest, read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.runner.execute import StageFailed
from srmir_lib.runner.manifest import git_state, read_manifest, utc_now
from srmir_lib.runner.notebook import GIVEN_BY_RUNNER
from srmir_lib.runner.series import Runner, Task
from srmir_lib.runner.workers import needs_of

RECORDS = Path("outputs/reference/seeds")


NO_RECORD = "not a record of a seed", "delete it and run the seed again"


KEPT = ("started", "seconds", "git_commit", "git_dirty", "versions", "cpu", "threads")


def run_seeds(
    preset: str,
    seeds: Sequence[int],
    notebooks: Iterable[str] = (),
    root: str | Path | None = None,
    again: bool = False,
    data: int | None = None,
    say=print,
) -> Iterator[str]:
    """Run the notebooks of a preset for every seed and record their metrics; yields a line a seed.

    Nothing is run before every parameter of every seed was checked. A notebook whose check fails is recorded with what
    it had measured and with the failure, or only the seeds that came out well would be left; its seed ends there, the
    others go on, and the end is a `StageFailed`. `again` runs what is done and recorded once more. `data`: a seed whose
    stages all others take over, but for the `notebooks`: the same data and reward models, other trainings.
    """
    if not seeds or any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {list(seeds)}; give different whole numbers from 0 on")
    notebooks, failed = list(notebooks), []
    runners = {seed: Runner(preset, root, seed) for seed in seeds}
    for seed, runner in runners.items():
        if data not in (None, seed):
            _take_over(runner, Runner(preset, root, data), {*runner.select(notebooks, everything=True)})
    plans = {seed: runner.plan(runner.select(notebooks, everything=True)) for seed, runner in runners.items()}
    for seed, tasks in plans.items():
        runner, chains, stale = runners[seed], _chains(runners[seed]), stale_records(preset, root)
        files = [_file(runner, task) for task in tasks]
        if not again and all(file.is_file() and runner.shown(file) not in stale for file in files):
            yield f"seed {seed}: recorded already"
            continue
        by_name = {task.name: task for task in tasks}
        try:
            for result in runner.run(tasks, say=say, again=again):
                _record(runner, by_name.pop(result.name), chains)
                say(f"{result.name}: {result.state}, {result.seconds:.0f} s")
        except StageFailed as error:
            _record(runner, next(iter(by_name.values())), chains, str(error))
            failed.append(f"seed {seed}: {error}")
            yield f"seed {seed}: failed; what it had measured is on record"
        else:
            yield f"seed {seed}: recorded in {runner.shown(files[0].parent)}"
    if failed:
        raise StageFailed("; ".join(failed))


def _take_over(runner: Runner, other: Runner, named: set[str]) -> None:
    """Give a seed the stages of another seed that are not `named`; none is run."""
    if not other.outputs.is_dir():
        series = " ".join(name.partition("_")[0] for name in other.select())
        fix = f"run `srmir seeds {other.preset} {series} --seeds {other.seed}` first"
        raise InputError(f"--data {other.seed}: {runner.shown(other.outputs)} is missing; {fix}")
    for task in runner.plan(runner.select(everything=True), check_inputs=False):
        folder = other.outputs / task.name
        if task.name not in named and read_manifest(folder) and runner.state(task) != "done":
            runner.share(task, folder)


def read_seeds(folder: str | Path) -> dict[int, dict[str, float]]:
    """All metrics on record in `folder` (`outputs/reference/seeds/<preset>`): seed -> {"<notebook>/<metric>": value}.

    No record, a damaged one, or seeds that were run with different parameters, are an `InputError`.
    """
    found: dict[int, dict[str, float]] = {}
    for record in _records(folder):
        metrics = {f"{record['notebook']}/{name}": value for name, value in record["metrics"].items()}
        found.setdefault(record["seed"], {}).update(metrics)
    return dict(sorted(found.items()))


def facts_of_seeds(folder: str | Path) -> dict:
    """What made the records in `folder`: seeds, commits, the failures of notebooks that stopped at their check, and the
    notebooks on record that are older than what the seed's first notebook made last, and so read an earlier version."""
    records = _records(folder)
    made = {(record["seed"], record["notebook"]): record.get("started", "") for record in records}
    first = min(record["notebook"] for record in records)
    older = {notebook for (seed, notebook), started in made.items() if started < made.get((seed, first), "")}
    return {
        "seeds": sorted({record["seed"] for record in records}),
        "commits": sorted({str(record["git_commit"])[:7] for record in records}),
        "failed": [f"seed {r['seed']}, {r['notebook']}" for r in records if r.get("failure")],
        "on earlier data": sorted(older),
    }


def stale_records(preset: str, root: str | Path | None = None) -> list[str]:
    """Files of the records of `preset` that today's parameters, or those of a stage it reads, would no longer make.

    A parameter that was merely added, and has its default, makes no record stale; a default that changed does.
    """
    runner = Runner(preset, root)
    chains, today = _chains(runner), _read_with(runner)
    stale = []
    for file in sorted((runner.root / RECORDS / preset).glob("*/*.json")):
        with as_written(file, *NO_RECORD):
            stale += [] if _is_current(read_json(file), chains, today) else [runner.shown(file)]
    return stale


def _is_current(record: dict, chains: dict[str, str], today: dict[str, dict[str, dict]]) -> bool:
    """Whether today's preset would make this record: its chain, and every parameter that stood in it then."""
    name = record.get("notebook")
    if name not in today or record.get("chain") != chains[name]:
        return False
    made = {**record["reads"], name: record["parameters"]}
    now = today[name].items()
    return all(made.get(stage, {}).get(key, value) == value for stage, own in now for key, value in own.items())


def _records(folder: str | Path) -> list[dict]:
    folder, records, made = Path(folder), [], {}
    for file in sorted(folder.glob("*/*.json")):
        with as_written(file, *NO_RECORD):
            record = read_json(file)
            record |= {"seed": int(record["seed"]), "metrics": dict(record["metrics"])}
            notebook, chain = record["notebook"], record["chain"]
        first = made.setdefault(notebook, (chain, file))
        if first[0] != chain:
            fix = "run all seeds again, or delete the records of the others"
            raise InputError(f"{file} and {first[1]} were run with different parameters; {fix}")
        records.append(record)
    if not records:
        raise InputError(f"{folder}: no records; run `srmir seeds {folder.name} --seeds …`")
    return records


def _file(runner: Runner, task: Task) -> Path:
    return runner.root / RECORDS / runner.preset / str(runner.seed) / f"{task.name}.json"


def _parameters(task: Task, values: dict | None = None) -> dict:
    """A stage's parameters (or `values` of them) by name, those of a group as `group.name`: of each it is known for
    itself whether it was added, or changed, since a record was made."""
    settings = task.notebook.model(**(task.parameters if values is None else values))
    return {name: value for name, value in settings.flat().items() if name not in (*GIVEN_BY_RUNNER, "seed")}


def _chains(runner: Runner) -> dict[str, str]:
    """Of every stage a hash of its parameters, where they are not the notebook's defaults, and of those of all stages
    it reads, the seed left out."""
    chains: dict[str, str] = {}
    for task in runner.plan(runner.select(everything=True), check_inputs=False):
        defaults = _parameters(task, task.notebook.parameters({}, task.name))
        chosen = {name: value for name, value in _parameters(task).items() if value != defaults[name]}
        parts = [chosen, sorted({chains.get(notebook, "") for notebook, _ in task.reads})]
        chains[task.name] = digest(parts, sort_keys=True)[:16]
    return chains


def _read_with(runner: Runner) -> dict[str, dict[str, dict]]:
    """Of every stage the parameters of itself and of all stages it reads, by name."""
    tasks = {task.name: task for task in runner.plan(runner.select(everything=True), check_inputs=False)}
    needs = needs_of(tasks.values())
    return {name: {other: _parameters(tasks[other]) for other in (name, *sorted(needs[name]))} for name in tasks}


def _record(runner: Runner, task: Task, chains: dict[str, str], failure: str = "") -> None:
    """Keep a stage's metrics, and what a reader needs to weigh them; of one that stopped what it had measured, and
    why it stopped."""
    if failure:
        folder = runner.work(task.name)
        reason = " ".join(failure.replace(f"{runner.root}/", "").split())[:500]
        facts = {"started": utc_now(), "failure": reason} | git_state(runner.root)
    else:
        folder = runner.outputs / task.name
        manifest = read_manifest(folder)
        facts = {name: manifest[name] for name in KEPT}
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    about = {"preset": runner.preset, "notebook": task.name, "seed": runner.seed, "chain": chains[task.name]}
    reads = _read_with(runner)[task.name]
    parameters = {"parameters": reads.pop(task.name), "reads": reads}
    write_json(_file(runner, task), about | facts | parameters | {"metrics": metrics})
