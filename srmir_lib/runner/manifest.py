"""The record that every finished stage leaves: what ran, on what, from what, and what came out.

A manifest holds parameters, versions and hashes, and nothing of the environment: no variables, no tokens, no host name.
"""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from srmir_lib.artifacts import read_json, sha256
from srmir_lib.errors import InputError

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "papermill")


NOT_ARTEFACTS = ("manifest.json", "key.json")


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


def machine(jobs: int = 1) -> dict:
    """Versions, processor and threads: what another person needs to weigh the seconds and the numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
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
    """SHA-256 of each file or folder directly under a stage's folder, the manifest and the executed notebook aside."""
    named = {p.name: p for p in folder.iterdir() if p.name not in NOT_ARTEFACTS and p.suffix != ".ipynb"}
    return {name: sha256(path) for name, path in sorted(named.items()) if not name.startswith(".")}


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished stage, None when there is none; a damaged one is an `InputError`."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not {"ok", "key", "outputs"} <= manifest.keys():
        raise InputError(f"{path}: not a manifest; delete {folder} and run its stage again")
    return manifest


def damaged(folder: Path, manifest: dict) -> list[str]:
    """Names of recorded outputs that are gone or no longer hash to what the manifest says."""
    outputs = manifest["outputs"].items()
    return [name for name, digest in outputs if not (folder / name).exists() or sha256(folder / name) != digest]
