"""A notebook's place in the series: where it reads, where it writes, and the source it shows.

Nothing here imports torch, so the command line can use it and still start at once.
"""

import inspect
import os
from collections.abc import Iterable
from pathlib import Path

from srmir_lib.artifacts import (
    atomic_path,
    check_metrics,
    inside,
    load_dataset,
    restored,
    save_dataset,
    write_json,
    write_jsonl,
)
from srmir_lib.errors import InputError
from srmir_lib.rows import read_jsonl
from srmir_lib.runner import smollm2

SCRATCH = ".scratch"
"""Folder in a stage's work folder for what is of use to a killed run alone."""


def find_root() -> Path:
    """The repository: `SRMIR_ROOT`, else the checkout this package lies in, else the nearest one above the caller.

    A repository is a folder that holds `pyproject.toml` and `notebooks/`. None found is an `InputError`.
    """
    if os.environ.get("SRMIR_ROOT"):
        return Path(os.environ["SRMIR_ROOT"]).resolve()
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise InputError(f"{here}: not inside the repository; change into it, or set SRMIR_ROOT to its folder")


def how_to_run(preset: str, notebook: str) -> str:
    """The command that makes a stage; a stage of one seed has the preset `seeds/<preset>/<seed>`."""
    number, seeds = notebook.split("_")[0], preset.split("/")
    return f"srmir run {preset} {number}" if len(seeds) == 1 else f"srmir seeds {seeds[1]} {number} --seeds {seeds[2]}"


class Stage:
    """One notebook of one preset: its output folder, its inputs, its metrics and figures.

    `output_dir` is empty when a reader presses "Run all" (results go to `outputs/<preset>/<notebook>`), and a work
    folder when the runner executes the notebook. Relative paths always start at the repository root, never at the
    working directory, so the same notebook runs from anywhere.
    """

    def __init__(self, notebook: str, preset: str, output_dir: str = "", root: str | Path | None = None):
        self.notebook, self.preset, self.resumes = notebook, preset, bool(output_dir)
        self.root = Path(root).resolve() if root else find_root()
        self.outputs = inside(self.root / "outputs", preset)
        self.folder = self.resolve(output_dir) if output_dir else self.outputs / notebook
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror.lower()
            raise InputError(f"{self.folder}: cannot write here ({reason}); choose another output_dir") from error

    def resolve(self, path: str | Path) -> Path:
        """`path` as given when absolute, else under the repository root; `~` and `$VARIABLES` are expanded."""
        return (self.root / os.path.expandvars(Path(path).expanduser())).resolve()

    def path(self, name: str) -> Path:
        """Where this stage writes the artefact `name`; the caller writes it (atomically). See `artifacts.inside`."""
        return inside(self.folder, name)

    def scratch(self, name: str) -> Path | None:
        """Where a run that is killed finds what it need not make again: a folder that goes when the stage is done. None
        where a reader presses "Run all": nothing would tell what the code of another day had left there."""
        return self.path(f"{SCRATCH}/{name}") if self.resumes else None

    def input(self, notebook: str, name: str) -> Path:
        """The artefact `name` that an earlier `notebook` of this preset wrote; missing is an `InputError`.

        The runner finds a stage's inputs by reading these calls: give literals, or a parameter of the notebook.
        """
        path = restored(inside(self.outputs, f"{notebook}/{name}"))
        if not path.exists():
            raise InputError(f"{path}: missing; run `{how_to_run(self.preset, notebook)}` first")
        return path

    def dataset(self, notebook: str, name: str, columns: Iterable[str] = ()):
        """The `datasets` folder `name` of an earlier `notebook`, which must have `columns`; see `input`."""
        return load_dataset(self.input(notebook, name), columns)

    def rows(self, notebook: str, name: str) -> list[dict]:
        """The JSON lines `name` of an earlier `notebook`; see `input`."""
        return read_jsonl(self.input(notebook, name))

    def base_model(self, base_model: str = "") -> str:
        """What to load as a base model: a folder under the root, a hub id, `smollm2`, or (empty) the model 01 made."""
        if not base_model:
            return str(self.input("01_data", "base_model"))
        if base_model == smollm2.NAME:
            return smollm2.smollm2(self.resolve("outputs/.cache"))
        folder = self.resolve(base_model)
        return str(folder) if folder.is_dir() else base_model

    def save_dataset(self, dataset, name: str) -> None:
        """Write a `Dataset` or `DatasetDict` as the folder `name`."""
        save_dataset(dataset, self.path(name))

    def save_json(self, value: object, name: str) -> None:
        """Write `value` as the file `name`; NaN and infinity are refused."""
        write_json(self.path(name), value)

    def save_rows(self, rows: Iterable[dict], name: str) -> None:
        """Write `rows` as the file `name`, one JSON object a line."""
        write_jsonl(self.path(name), rows)

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Write `metrics.json`: flat names to finite numbers; anything else is an `InputError` that names it."""
        write_json(self.path("metrics.json"), check_metrics(metrics))

    def save_figure(self, figure, name: str) -> None:
        """Save a matplotlib figure as `figures/<name>.png`. It returns nothing, so the notebook shows it once."""
        with atomic_path(self.path(f"figures/{name}.png")) as fresh:
            figure.savefig(fresh, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})


class Source(str):
    """Python source: highlighted in a notebook (and in its HTML export, offline), plain text everywhere else."""

    def _repr_markdown_(self) -> str:
        # the HTML export has outputs inherit their font, which is that of prose, and wraps 120 letters of its size
        return f'<div style="font-family: monospace; font-size: 0.85em">\n\n````python\n{self}\n````\n\n</div>'

    def __repr__(self) -> str:
        return str(self)


def show_source(*objects) -> Source:
    """The live source of functions or classes of this library, under the file and line they stand at."""
    parts = []
    for item in map(inspect.unwrap, objects):
        lines, start = inspect.getsourcelines(item)
        file = item.__module__.replace(".", "/") + ".py"
        parts.append(f"# {file}, line {start}\n{''.join(lines).rstrip()}")
    return Source("\n\n\n".join(parts))
