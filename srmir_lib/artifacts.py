"""Files that are never half written: atomic writes, hashes, JSON, datasets, and one kind of error.

Everything the notebooks save goes through this module, so a killed run leaves either the old artefact or the new one.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from srmir_lib.errors import InputError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` (a file or a folder to be made); rename it over `target` on success.

    On an exception the temporary path is removed and the earlier `target` stays as it was.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target}: cannot write here ({error.strerror}); choose another output folder") from error
    fresh = scratch / target.name
    try:
        yield fresh
        if target.is_dir():
            os.replace(target, scratch / ".old")
        os.replace(fresh, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: str | Path, value: object) -> Path:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path}: a value is NaN or infinite; a run that made it is not finished") from error
    with atomic_path(path) as fresh:
        fresh.write_text(text + "\n", encoding="utf8")
    return Path(path)


def read_json(path: str | Path) -> object:
    """Read a JSON file; a missing or damaged file is an `InputError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from error


def read_jsonl(path: str | Path, columns: Iterable[str] = ()) -> list[dict]:
    """Read JSON lines; every row must hold `columns`. Errors name the file and the row (counted from 1)."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: row {number} is not JSON ({error.msg}); is the file truncated?") from error
        missing = [name for name in columns if not isinstance(row, dict) or name not in row]
        if missing:
            raise InputError(f"{path}: row {number} lacks {', '.join(missing)}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def json_lines(file: Iterable[bytes], path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (row number, row) of the lines of an open binary file: from 1, blank lines counted and left out.

    Only line feeds end a row: other separators of Unicode may stand inside a text. A line that is no JSON object is an
    `InputError` that names `path` and the row.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: row {number} is not JSON ({error}); is the file truncated?") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number} is not a JSON object with named columns")
        yield number, row


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> Path:
    """Write one JSON object a line, atomically."""
    with atomic_path(path) as fresh, fresh.open("w", encoding="utf8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return Path(path)


def save_dataset(dataset, folder: str | Path) -> Path:
    """Save a `Dataset` or `DatasetDict` as a `datasets` folder, atomically."""
    with atomic_path(folder) as fresh, no_dataset_bars():
        dataset.save_to_disk(str(fresh))
    return Path(folder)


@contextmanager
def no_dataset_bars() -> Iterator[None]:
    """While this lasts, `datasets` shows no bars for reading, mapping and writing; afterwards as before."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def load_dataset(folder: str | Path, columns: Iterable[str] = ()):
    """Load a `datasets` folder written by `save_dataset`; missing, damaged or empty folders are an `InputError`.

    From then on `datasets` caches nothing (`map` and `filter` would write into the folder that was read) and shows no
    bars of its own.
    """
    from datasets import DatasetDict, disable_caching, disable_progress_bars, load_from_disk

    disable_caching()
    disable_progress_bars()

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run the stage that writes it")
    try:
        dataset = load_from_disk(str(folder))
        splits = dataset if isinstance(dataset, DatasetDict) else {"all": dataset}
        for name, split in splits.items():
            missing = [column for column in columns if column not in split.column_names]
            if missing:
                raise InputError(f"{folder}: split {name} lacks the columns {', '.join(missing)}")
            if len(split) == 0:
                raise InputError(f"{folder}: split {name} has no rows")
            split[0], split[-1]
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder}: damaged dataset folder ({reason}); run its stage again") from error
    return dataset


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder (relative names and contents, sorted)."""
    path, digest = Path(path), hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_metrics(metrics: dict) -> dict[str, float]:
    """Return flat `name -> number`; anything nested, non-numeric or non-finite is an `InputError` that names it."""
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"metrics.json: {name} = {value!r} is not a finite number")
    return {name: float(value) for name, value in metrics.items()}
