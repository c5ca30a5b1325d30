"""Files that are never half written: atomic writes, hashes, JSON, datasets.

Everything the notebooks save goes through this module, so a killed run leaves either the old artefact or the new one.
"""

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from srmir_lib.errors import InputError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` (a file or a folder to be made); put it in `target`'s place on success.

    Whatever ends it early - an exception, ctrl-C, a kill, a body that wrote nothing - the earlier `target` is whole;
    what a killed writer left beside it goes with the next write.
    """
    target = Path(target)
    scratch = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for litter in (scratch, *_litter(target)):
                shutil.rmtree(litter, ignore_errors=True)
            restored(target)
            scratch.mkdir()
        except OSError as error:
            raise InputError(f"{target}: cannot write here ({error.strerror}); choose another output folder") from error
        yield scratch / target.name
        open_up(scratch)
        put_in_place(scratch / target.name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def open_up(folder: Path) -> None:
    """Give all below `folder`, which a plain mkdir made, the permissions that the umask says, as the folder has them:
    safetensors and tempfile write for the owner's eyes alone. A disk that keeps no permissions is left as it is."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            with suppress(PermissionError):
                path.chmod(mode if path.is_dir() else mode & 0o666)


def put_in_place(fresh: Path, target: Path) -> None:
    """Move the file or folder `fresh` to `target` on the same disk; what was there is gone, once `fresh` has its place.

    A folder cannot be renamed over another. Where the system can (Linux) the two exchange their names in one step;
    elsewhere the old one steps aside under a name that `restored` knows.
    """
    if not os.path.lexists(fresh):
        raise FileNotFoundError(errno.ENOENT, "nothing was written", str(target))
    restored(target)
    shutil.rmtree(_aside(target), ignore_errors=True)
    if not os.path.lexists(target) or not (target.is_dir() or fresh.is_dir()):
        os.replace(fresh, target)
    elif not _exchange(fresh, target):
        try:
            os.replace(target, _aside(target))
            os.replace(fresh, target)
            os.replace(_aside(target), fresh)  # half a folder never bears the name that brings it back
        finally:
            restored(target)
    shutil.rmtree(fresh, ignore_errors=True)


def restored(path: str | Path) -> Path:
    """`path`; if it, or a folder above it, is missing because a swap was cut off, the old one is back in its place."""
    path = Path(path)
    for place in (path, *path.parents):
        if os.path.lexists(place):
            break
        if os.path.lexists(_aside(place)):
            os.replace(_aside(place), place)
    return path


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (renameat2 with RENAME_EXCHANGE); False where system or disk cannot do it."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = getattr(ctypes.CDLL(None), "renameat2", None)
    except TypeError:  # Windows: no library is the program itself
        return False
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _litter(target: Path) -> list[Path]:
    """Scratch folders of `target` whose writers are gone."""
    own = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-\d+")
    writers = {place: own.fullmatch(place.name) for place in target.parent.iterdir()}
    return [place for place, writer in writers.items() if writer and not psutil.pid_exists(int(writer[1]))]


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
    if not os.path.lexists(restored(path)):
        raise InputError(f"{path}: no such file; run the stage that writes it")
    with as_written(path, "not valid JSON", "delete it and run its stage again"):
        return json.loads(Path(path).read_text(encoding="utf8"))


@contextmanager
def as_written(path: str | Path, what: str = "damaged", fix: str = "run its stage again") -> Iterator[None]:
    """While this lasts, whatever goes wrong, but for a lack of memory, is an `InputError` that names `path`: a file or
    folder that is not as it was written fails in as many ways as there are libraries that read it."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            raise
        said = str(error).strip().partition("\n")[0].rstrip(" :")
        said = f"lacks {said}" if isinstance(error, KeyError) else getattr(error, "strerror", "") or said
        reason = said or type(error).__name__
        raise InputError(f"{path}: {what} ({reason}); {fix}") from error


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

    folder = restored(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run the stage that writes it")
    if not is_dataset(folder):
        ends = ("jsonl*", "json", "parquet")
        found = sorted(path for end in ends for place in ("", "*/") for path in folder.glob(f"{place}*.{end}"))
        fix = f"name a file of rows in it, such as {found[0].relative_to(folder)}" if found else "run its stage again"
        raise InputError(f"{folder}: not a folder that `datasets` saved (save_to_disk); {fix}")
    with as_written(folder, "damaged dataset folder"):
        dataset = load_from_disk(str(folder))
        splits = dataset if isinstance(dataset, DatasetDict) else {"all": dataset}
        for name, split in splits.items():
            missing = [column for column in columns if column not in split.column_names]
            if missing:
                raise InputError(f"{folder}: split {name} lacks the columns {', '.join(missing)}")
            if len(split) == 0:
                raise InputError(f"{folder}: split {name} has no rows")
            split.data.validate(full=True)
            split[0], split[-1]
    return dataset


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder: one of its two records is there."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def inside(folder: Path, name: str) -> Path:
    """`folder / name`; a name that leads out of the folder is an `InputError`: it may come from a parameter file."""
    path = Path(os.path.normpath(folder / name))
    if ".." in Path(name).parts or not path.is_relative_to(os.path.normpath(folder)):
        raise InputError(f"{name}: leads out of {folder}; give a plain name")
    return path


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


def digest(value: object, sort_keys: bool = False) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()


def remembered(folder: Path, key: object, make: Callable[[], object]) -> object:
    """What `make` gives, as JSON holds it, or what it gave before: kept in `folder` under the digest of `key`, which is
    to name all that decides it and may change while the folder lives."""
    file = folder / f"{digest(key)}.json"
    if not file.is_file():
        write_json(file, make())
    return read_json(file)


def check_metrics(metrics: dict) -> dict[str, float]:
    """Return flat `name -> number`; anything nested, non-numeric or non-finite is an `InputError` that names it."""
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"metrics.json: {name} = {value!r} is not a finite number")
    return {name: float(value) for name, value in metrics.items()}
