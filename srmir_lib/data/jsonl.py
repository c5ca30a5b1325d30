"""Rows of people's files, one by one: read, checked, written as JSON lines, with progress. Imports nothing slow."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from srmir_lib.artifacts import atomic_path, is_dataset
from srmir_lib.errors import InputError, RowError
from srmir_lib.rows import rows_in

OF_DATASETS = re.compile(r"^(dataset_dict|dataset_info|state)\.json$|\.arrow$")
"""Files that `datasets` writes into a folder."""


def read_rows(path: str | Path, problem: Callable[[dict], str]) -> Iterator[tuple[int, dict]]:
    """Yield (row number, row) of a file or folder as `rows.rows_in` does, checked.

    `problem` says what is wrong with a row, or "". That, and a row that could not be written as UTF-8 JSON again, are
    `InputError`s.
    """
    for number, row in rows_in(path):
        if wrong := problem(row) or _unwritable(row):
            raise InputError(f"{path}: row {number}: {wrong}")
        yield number, row


def _unwritable(row: dict) -> str:
    try:
        json_line(row)
    except (ValueError, TypeError) as error:
        return f"holds what JSON in UTF-8 cannot ({error}); convert or drop that column"
    return ""


def json_line(row: dict) -> bytes:
    """One row as a line of UTF-8 JSON; NaN, infinity and broken Unicode are a `ValueError`."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def count_rows(rows: Iterable, path: str | Path) -> int:
    """Read all rows, to check them, and count them; none is an `InputError`."""
    count = sum(1 for _ in rows)
    if not count:
        raise InputError(f"{path}: no rows")
    return count


def chunked(rows: Iterator[tuple[int, dict]], size: int) -> Iterator[tuple[tuple[int, ...], tuple[dict, ...]]]:
    """(row numbers, rows), at most `size` of them at a time, in order."""
    while chunk := list(islice(rows, size)):
        yield tuple(zip(*chunk, strict=True))


def seven_digits(number: float) -> float:
    """As many digits as float32 holds, so that a file shows no noise."""
    return float(f"{number:.7g}")


@contextmanager
def rows_of(source: str | Path, numbers: Sequence[int], aligned: bool = True) -> Iterator[None]:
    """Name the rows of `source` in an error about a chunk of them, `numbers`.

    `aligned`: whether row i of a `RowError` is row i of the chunk; if not, the chunk is named.
    """
    which = f"rows {numbers[0]} to {numbers[-1]}"
    try:
        yield
    except RowError as error:
        named = f"row {numbers[error.row]}" if aligned else which
        raise InputError(f"{source}: {error.text.replace('{row}', named)}") from error
    except InputError as error:
        raise InputError(f"{source}: {which}: {error}") from error


def long_rows(
    source: str | Path,
    chunks: Iterable[tuple[Sequence[int], Sequence[dict]]],
    problems: Callable,
    policy: str,
    what: str = "row",
) -> set[int]:
    """The numbers of the rows that are too long, of which `problems` says of a chunk what is wrong ("" if nothing);
    with the policy refuse the first is an `InputError`, with skip that none is left. `what`: what a row is called."""
    found, count = set(), 0
    for numbers, rows in chunks:
        with rows_of(source, numbers):
            wrong = {number: said for number, said in zip(numbers, problems(rows), strict=True) if said}
        if wrong and policy == "refuse":
            number, said = next(iter(wrong.items()))
            raise InputError(f"{source}: row {number}: {said}; shorten it, or pass --too-long cut or --too-long skip")
        found |= wrong.keys()
        count += len(numbers)
    if policy == "skip" and len(found) == count:
        raise InputError(f"{source}: every {what} is too long, so that skip leaves none; pass --too-long cut")
    return found


def write_rows(
    source: str | Path,
    target: str | Path,
    rows: Iterator[tuple[int, dict]],
    columns: Callable[[tuple[dict, ...], list[bool]], Iterable[dict]],
    long: set[int],
    policy: str,
    total: int,
    verb: str,
    chunk: int,
) -> int:
    """Write `total` numbered rows to `target` as JSON lines, with what `columns` adds to each of a chunk of them, given
    which are `long`; with the policy skip those are left out. Returns how many there are; what is `verb` has a bar."""
    skipped = long if policy == "skip" else set()
    kept = ((number, row) for number, row in rows if number not in skipped)
    done = total - len(skipped)
    with progress(done, verb) as bar, atomic_path(Path(target).resolve()) as fresh, fresh.open("wb") as file:
        for numbers, found in chunked(kept, chunk):
            with rows_of(source, numbers):
                added = columns(found, [number in long for number in numbers])
            for row, new in zip(found, added, strict=True):
                file.write(json_line(row | new))
            bar.update(len(found))
    return done


def spread(rows: Iterable[tuple[int, dict]], total: int, most: int) -> Iterator[tuple[int, dict]]:
    """At most so many of `total` numbered rows, evenly spread."""
    places = {at * total // min(most, total) for at in range(min(most, total))}
    return (row for at, row in enumerate(rows) if at in places)


def counted(long: int, policy: str) -> str:
    """What a closing line says of so many rows that were too long."""
    return f" ({long} too long: {'left out' if policy == 'skip' else 'cut'})" if long else ""


def problem_of(row: dict, read: Callable[[dict], object]) -> str:
    """What is wrong with a row, by what reads it, or ""."""
    try:
        read(row)
    except InputError as error:
        return str(error)
    return ""


def taken(names: Iterable[str], row: Iterable[str]) -> str:
    """What is wrong with a row that has a column which one of ours, `names`, would overwrite; "" if it has none."""
    found = [name for name in names if name in row]
    return f"has a column {found[0]} already; give ours another name with --prefix" if found else ""


def check_output(path: str | Path, inputs: Iterable[str | Path], folder: bool = False) -> None:
    """Refuse an output that cannot be written, or that would replace an input or something of another kind.

    `folder`: whether a `datasets` folder is to be written; only an earlier one may be replaced.
    """
    path = Path(path)
    place = path.resolve()
    for other in map(Path, inputs):
        source = other.resolve()
        same = place == source or (path.exists() and other.exists() and path.samefile(other))
        if same or source in place.parents or place in source.parents:
            raise InputError(f"{path}: the output would overwrite {other}; choose another place")
    if not folder and path.suffix in (".gz", ".parquet", ".csv", ".arrow"):
        raise InputError(f"{path}: would hold JSON lines; name it .jsonl")
    if path.exists() and not folder and not path.is_file():
        raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'no plain file'}; name a file to write")
    if path.exists() and folder and not is_dataset(path):
        raise InputError(f"{path}: exists and is not a datasets folder; name a new folder, or one to replace")
    for file in sorted(path.rglob("*")) if folder else ():
        if file.is_file() and not OF_DATASETS.search(file.name):
            raise InputError(f"{path}: holds {file.relative_to(path)}, which would be lost; name a new folder")
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "is not a folder" if not above.is_dir() else "may not be written to"
        raise InputError(f"{path}: cannot write here ({above} {reason}); choose another output folder")


def progress(total: int, verb: str) -> tqdm:
    """A bar of rows on stderr; where nobody watches, every 30 seconds, and not at all if all is done by then."""
    rest = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=verb, unit="row", mininterval=rest, delay=rest, file=sys.stderr)
