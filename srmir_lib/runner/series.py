"""The series as a whole: check everything first, run what is not up to date, never lose a finished result.

A preset is a folder `params/<preset>/` with one parameter file a notebook. A stage runs in a work folder
`outputs/<preset>/.<notebook>.work/`, which takes the place of `outputs/<preset>/<notebook>/` only when the notebook,
its checks included, has run to its end.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from srmir_lib.artifacts import digest, open_up, put_in_place, read_json, sha256, write_json
from srmir_lib.errors import InputError
from srmir_lib.runner import manifest as records
from srmir_lib.runner.execute import Board, StageFailed, refresh_prose
from srmir_lib.runner.launch import check_config
from srmir_lib.runner.notebook import GIVEN_BY_RUNNER, Notebook, load_values
from srmir_lib.runner.stage import SCRATCH, find_root, how_to_run
from srmir_lib.runner.workers import Workers, needs_of, next_to_start

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


ACCELERATE = "accelerate"
"""The folder of `params/` that is no preset: accelerate's configuration files."""

ATTEMPTS = ".attempts.json"
"""In a work folder: how often a stage has begun with its present key."""


@dataclass(frozen=True)
class Task:
    """A stage to run, checked: its notebook, all its parameters, those that are given to it, and the artefacts it
    reads."""

    notebook: Notebook
    parameters: dict
    given: dict
    reads: list[tuple[str, str]]

    @property
    def name(self) -> str:
        return self.notebook.name

    @property
    def alone(self) -> bool:
        """Whether nothing may run beside it: it measures time, or makes good use of every core (`srmir.alone`)."""
        return bool(self.notebook.metadata.get("srmir", {}).get("alone"))


@dataclass(frozen=True)
class Result:
    """How a stage stands: `state` is done, skipped, shared, or (from `status`) what is missing."""

    name: str
    state: str
    seconds: float | None = None
    peak_memory_mb: float | None = None
    started: str = ""


def at_work(work: Path) -> bool:
    """Whether a live run is in this work folder: it holds the lock of its `key.json`, which dies with its process."""
    try:
        with (work / "key.json").open() as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return isinstance(error, BlockingIOError)


def with_setting(values: dict, path: list[str], value: object) -> dict:
    """`values` with another value at the end of a path of names: ["training", "beta"] changes one of a group."""
    first, *rest = path
    inner = values.get(first)
    return values | {first: with_setting(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


class Runner:
    """Runs and reports the stages of one preset. An unknown preset is an `InputError`.

    With `seed` every stage gets that seed instead of its parameter file's, and writes under `outputs/seeds/`.
    """

    def __init__(self, preset: str, root: str | Path | None = None, seed: int | None = None):
        self.root = Path(root).resolve() if root else find_root()
        self.preset, self.seed = preset, seed
        self.name = preset if seed is None else f"seeds/{preset}/{seed}"  # what the notebooks take for their preset
        self.params = self.root / "params" / preset
        self.outputs = self.root / "outputs" / self.name
        presets = sorted(p.name for p in (self.root / "params").glob("*") if p.is_dir() and p.name != ACCELERATE)
        if preset not in presets:
            raise InputError(f"{preset}: unknown preset; there are {', '.join(presets) or 'none'} in params/")

    def series(self) -> list[str]:
        """The notebooks this preset has parameter files for, in running order: A0 comes before 04, A1 to A8 last."""
        names = [path.stem for path in self.params.glob("*.yaml")]
        return sorted(names, key=lambda name: "03_~" if name.startswith("A0") else name)

    def select(self, wanted: Iterable[str] = (), start: str = "", everything: bool = False) -> list[str]:
        """Names in running order: those `wanted` (by number or prefix), those from `start` on, else 00-06 and A0."""
        series = self.series()
        default = [name for name in series if everything or not name.startswith("A") or name.startswith("A0")]
        chosen = {self._match(prefix) for prefix in wanted} or set(default)
        first = series.index(self._match(start)) if start else 0
        return [name for name in series[first:] if name in chosen]

    def plan(self, names: Iterable[str], settings: dict | None = None, check_inputs: bool = True) -> list[Task]:
        """Check all that is to run before anything does: notebooks, parameters, and that inputs exist or will."""
        tasks, settings, unused = [], settings or {}, set(settings or {})
        for name in names:
            notebook = self._notebook(name)
            where = self.shown(self.params / f"{name}.yaml")
            values = load_values(self.params / f"{name}.yaml")
            parameters = notebook.parameters(values, where)
            if parameters["preset"] != self.preset or parameters["output_dir"]:
                raise InputError(f"{where}: write `preset: {self.preset}`, and leave output_dir to the runner")
            names = parameters.keys() - {*GIVEN_BY_RUNNER}
            if own := {key: value for key, value in settings.items() if key.split(".")[0] in names}:
                for key, value in own.items():
                    values = with_setting(values, key.split("."), value)
                parameters = notebook.parameters(values, "--set")
            unused -= own.keys()
            if self.seed is not None:
                again = {"preset": self.name, "seed": self.seed}
                parameters, values = parameters | again, values | again
            tasks.append(Task(notebook, parameters, values, notebook.reads(parameters)))
        if unused:
            among, elsewhere = ", ".join(task.name for task in tasks), self._that_know(unused)
            where = f"; {', '.join(elsewhere)} can be told" if elsewhere else ""
            raise InputError(f"--set {', '.join(sorted(unused))}: not a parameter that can be set in {among}{where}")
        if check_inputs:
            self._check_inputs(tasks)
        return tasks

    def state(self, task: Task) -> str:
        """done; or why it has to run: missing, interrupted, stale (parameters, code or inputs changed), damaged."""
        folder = self.outputs / task.name
        manifest = records.read_manifest(folder)
        if manifest is None or not manifest["ok"]:
            return "interrupted" if self.work(task.name).is_dir() else "missing"
        try:
            key, _ = self._key(task)
        except InputError:
            return "stale"
        if manifest["key"] != key:
            return "stale"
        return "damaged" if records.damaged(folder, manifest["outputs"]) else "done"

    def status(self, tasks: list[Task]) -> list[Result]:
        """How each stage stands, running or its `state`; nothing is run or changed."""
        states = ("running" if at_work(self.work(task.name)) else self.state(task) for task in tasks)
        return [self._result(task, state) for task, state in zip(tasks, states, strict=True)]

    def run(
        self, tasks: list[Task], say=print, jobs: int = 1, again: bool = False, config: Path | None = None
    ) -> Iterator[Result]:
        """Run what is not done (`again`: all), in order, yielding a result a stage. Stops at the first failure with
        `StageFailed`. What another preset, or a seed, has made in the same way is not made again: it is shared.

        With `jobs` up to so many run side by side that do not need each other; those that others wait for begin
        first. One that says `srmir.alone` in its notebook's metadata has the machine to itself.
        After a failure what runs comes to its end; nothing else begins. `config`: accelerate's, for notebooks with
        `num_processes` above 1.
        """
        if jobs < 1:
            raise InputError(f"--jobs {jobs}: give a number from 1 on")
        if config:
            check_config(config, max(task.parameters.get("num_processes", 1) for task in tasks))
        waiting, begun, locks, failure = list(tasks), {}, {}, None
        needs, board = needs_of(tasks), Board()
        with self._lock(), Workers(board, jobs, config) as workers:
            while waiting or workers.busy:
                task, together = (None, False) if failure else next_to_start(waiting, workers.busy, needs, jobs)
                try:
                    if task and not again and self.state(task) == "done":
                        waiting.remove(task)
                        refresh_prose(self.outputs / task.name / task.notebook.path.name, task.notebook.path)
                        yield self._result(task, "skipped")
                        continue
                    if task and not again and (twin := self._twin(task)):
                        waiting.remove(task)
                        self.share(task, twin)
                        yield self._result(task, "shared")
                        continue
                    if task:
                        waiting.remove(task)
                        board.clear()
                        say(f"{task.name}: running")
                        how = {"accelerate": self.shown(config)} if config else {}
                        begun[task.name] = task, self._begin(task, jobs if together else 1) | how
                        work, given = self.work(task.name), {"output_dir": self.shown(self.work(task.name))}
                        locks[task.name] = (work / "key.json").open()
                        fcntl.flock(locks[task.name], fcntl.LOCK_EX)
                        executed = work / f"{task.name}.ipynb"
                        workers.start(together, task.notebook, executed, task.given | given, self.root)
                        if together:
                            continue
                except (InputError, OSError) as error:
                    failure = error
                if not workers.busy:
                    break
                name, ended = workers.next()
                try:
                    kept = self._finish(*begun[name], *ended.result())
                except (InputError, StageFailed, OSError) as error:
                    failure = failure or error
                else:
                    if kept:
                        say(f"{name}: files of yours stood where results belong; they lie in {self.shown(kept)} now")
                    yield self._result(begun[name][0], "done")
                finally:
                    locks.pop(name).close()
        if failure:
            raise failure

    def _twin(self, task: Task) -> Path | None:
        """The folder of this stage as another preset made it, or this one with its own seed, of the same seed, code and
        inputs and with the same parameters but for the preset's name."""
        outputs, seed = self.root / "outputs", task.parameters["seed"]
        for folder in sorted([*outputs.glob(f"seeds/*/{seed}/{task.name}"), *outputs.glob(f"*/{task.name}")]):
            try:
                manifest = records.read_manifest(folder)
            except InputError:  # damaged, and not ours
                continue
            if folder.parent == self.outputs or not manifest or not manifest["ok"] or manifest["seed"] != seed:
                continue
            preset = folder.parent.relative_to(outputs).as_posix()
            named = replace(task, parameters=task.parameters | {"preset": preset})
            if manifest["key"] == self._key(named)[0] and not records.damaged(folder, manifest["outputs"]):
                return folder
        return None

    def share(self, task: Task, twin: Path) -> None:
        """Take over what the stage in the folder `twin` made; the manifest says whose it is and when it was made."""
        work, folder, (key, inputs) = self.work(task.name), self.outputs / task.name, self._key(task)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(twin, work)
        own = {"key": key, "inputs": inputs, "preset": self.preset, "parameters": task.parameters}
        write_json(work / "manifest.json", read_json(twin / "manifest.json") | own | {"shared_with": self.shown(twin)})
        records.carry_over(folder, work)
        put_in_place(work, folder)

    def _begin(self, task: Task, jobs: int) -> dict:
        """Make a stage's work folder; what an earlier, killed attempt with the same key left there is kept.

        Returns what its manifest will say of what decides its results, and of the start."""
        key, inputs = self._key(task)
        work = self.work(task.name)
        if not (work / "key.json").is_file() or read_json(work / "key.json") != key:
            shutil.rmtree(work, ignore_errors=True)
        write_json(work / "key.json", key)
        attempts = 1 + (read_json(work / ATTEMPTS) if (work / ATTEMPTS).is_file() else 0)
        write_json(work / ATTEMPTS, attempts)
        begun = {"key": key, "inputs": inputs, "started": records.utc_now(), "jobs": jobs, "attempts": attempts}
        return begun | records.git_state(self.root)

    def _finish(self, task: Task, begun: dict, seconds: float, peak: float) -> Path | None:
        """What a stage made takes the place of what was there, with a record of how it was made; see `carry_over`."""
        work, folder = self.work(task.name), self.outputs / task.name
        shutil.rmtree(work / SCRATCH, ignore_errors=True)
        manifest = {"ok": True, "preset": self.preset, "notebook": task.name, "seed": task.parameters["seed"]} | begun
        manifest |= {"seconds": round(seconds, 1), "peak_memory_mb": round(peak), "parameters": task.parameters}
        manifest |= records.machine(begun["jobs"]) | {"outputs": records.hash_outputs(work)}
        write_json(work / "manifest.json", manifest)
        executed = work / f"{task.name}.ipynb"
        text = executed.read_text(encoding="utf8").replace(self.shown(work), self.shown(folder))
        executed.write_text(text, encoding="utf8")
        open_up(work)
        kept = records.carry_over(folder, work)
        put_in_place(work, folder)
        for name in ("key.json", ATTEMPTS):
            (folder / name).unlink()
        return kept

    def _key(self, task: Task) -> tuple[str, dict[str, str]]:
        """Hash of all that decides a stage's results, and the hashes of its inputs; a damaged input is an `InputError`.

        Prose is left out: editing a markdown cell never trains a model again.
        """
        inputs = {}
        for notebook, name in task.reads:
            folder, fix = self.outputs / notebook, how_to_run(self.name, notebook)
            manifest = records.read_manifest(folder)
            if manifest is None or not (folder / name).exists():
                raise InputError(f"{self.shown(folder / name)}: missing; run `{fix}` first")
            made = {n: h for n, h in manifest["outputs"].items() if name in ("", n) or n.startswith(f"{name}/")}
            if wrong := records.damaged(folder, made):
                raise InputError(f"{self.shown(folder / wrong[0])}: damaged since it was made; run `{fix}`")
            inputs[f"{notebook}/{name}".rstrip("/")] = digest(made, sort_keys=True) if made else sha256(folder / name)
        written = task.notebook.metadata.get("srmir", {}).get("writes", [])
        inputs |= records.outside_inputs(task.parameters, written, self.root)
        files, packages = task.notebook.imports(self.root)
        code = {self.shown(file): sha256(file) for file in files}
        decisive = [package for name in packages & records.DECISIVE.keys() for package in records.DECISIVE[name]]
        decided = [task.parameters, task.notebook.code_cells(), code, records.versions(decisive), inputs]
        return digest(decided, sort_keys=True), inputs

    def _check_inputs(self, tasks: list[Task]) -> None:
        """Every artefact read must exist, or be written by a stage that runs before its reader; folders from outside
        must exist."""
        coming: set[str] = set()
        for task in tasks:
            task.notebook.model.checked(task.parameters).look_outside(self.root)
            for notebook, name in task.reads:
                folder, path = self.outputs / notebook, self.outputs / notebook / name
                if notebook not in coming and not (path.exists() and records.read_manifest(folder)):
                    fix = f"run `{how_to_run(self.name, notebook)}` first"
                    raise InputError(f"{task.name} reads {self.shown(path)}, which is missing; {fix}")
            coming.add(task.name)

    def _notebook(self, name: str) -> Notebook:
        path = self.root / "notebooks" / f"{name}.ipynb"
        if not path.is_file():
            raise InputError(f"{self.shown(self.params / name)}.yaml: there is no notebook {self.shown(path)}")
        notebook = Notebook.load(path)
        missing = [key for key in (*GIVEN_BY_RUNNER, "seed") if key not in notebook.defaults]
        if missing:
            raise InputError(f"{self.shown(path)}: its parameters cell lacks {', '.join(missing)}")
        return notebook

    def _that_know(self, names: Iterable[str]) -> list[str]:
        """The notebooks of this preset that have a parameter of one of these names."""
        wanted = {name.split(".")[0] for name in names} - {*GIVEN_BY_RUNNER}
        return [name for name in self.series() if wanted & self._notebook(name).defaults.keys()]

    def _match(self, prefix: str) -> str:
        """The notebook that `prefix` (01, A0, 04_grpo) means; none or several is an `InputError`."""
        found = [name for name in self.series() if name.startswith(prefix.removesuffix(".ipynb"))]
        if len(found) != 1:
            problem = "unknown notebook" if not found else "more than one notebook"
            raise InputError(f"{prefix}: {problem}; preset {self.preset} has {', '.join(self.series())}")
        return found[0]

    def work(self, name: str) -> Path:
        """Where a stage is at work, and what it leaves when it stops."""
        return self.outputs / f".{name}.work"

    def shown(self, path: Path) -> str:
        """A path as a reader at the repository root would type it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _result(self, task: Task, state: str) -> Result:
        manifest = records.read_manifest(self.outputs / task.name) or {}
        return Result(task.name, state, *(manifest.get(k) for k in ("seconds", "peak_memory_mb", "started")))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the preset's outputs for one run; a second run is an `InputError`. The lock dies with its process."""
        if fcntl is None:
            fix = "use Linux, macOS or WSL, or run the notebooks one by one in JupyterLab or by papermill"
            raise InputError(f"this system has no file locks (fcntl), so two runs could not be kept apart; {fix}")
        try:
            self.outputs.mkdir(parents=True, exist_ok=True)
            file = (self.outputs / ".lock").open("w")
        except OSError as error:
            reason = error.strerror.lower()
            raise InputError(f"{self.outputs}: cannot write here ({reason}); check the folder's permissions") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                busy = f"{self.shown(self.outputs)}: another `srmir run {self.preset}` is at work; wait for it to end"
                raise InputError(busy) from error
            yield
