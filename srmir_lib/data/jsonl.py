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

from srmir_lib.artifacts import is_dataset
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
    from jinja2 import TemplateError

    which = f"rows {numbers[0]} to {numbers[-1]}"
    try:
        yield
    except RowError as error:
        named = f"row {numbers[error.row]}" if aligned else which
        raise InputError(f"{source}: {error.text.replace('{row}', named)}") from error
    except InputError as error:
        raise InputError(f"{source}: {which}: {error}") from error
    except TemplateError as error:
        raise InputError(f"{source}: {which}: the chat template refuses a conversation there ({error})") from error


def messages_problem(value: object, name: str, last_role: str = "") -> str:
    """What is wrong with a text or conversation (a list of `{"role", "content"}` texts) called `name`; "" if nothing.

    `last_role`: who must speak last in a conversation, where that matters.
    """
    if isinstance(value, str):
        return ""
    if not isinstance(value, list):
        return f"{name} is a {type(value).__name__}; it must be a text or a list of messages"
    if not value:
        return f"{name} is an empty conversation; it needs a message"
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            return f"{name} holds a message that is not {{role: text, content: text}}"
    if last_role and value[-1]["role"] != last_role:
        return f"{name} ends with a message of {value[-1]['role']!r}; its last one must be of {last_role!r}"
    return ""


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
