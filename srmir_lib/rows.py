"""The one reader of rows, ours and other people's: JSON lines, a JSON list, parquet, a folder that `datasets` saved.

The first bytes of a file say what it is, not its name; any of them may be gzipped. A JSON list is held in memory, the
rest is not.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from srmir_lib.artifacts import load_dataset, restored
from srmir_lib.errors import InputError

FORMS = "JSON lines (also .jsonl.gz), a JSON list, parquet or a `datasets` folder"


PACKED = {b"PK\x03\x04": "a zip", b"\x28\xb5\x2f\xfd": "a zstd", b"BZh": "a bzip2", b"\xfd7z": "an xz"}
"""How files begin that have to be unpacked first."""


def rows_in(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (row number from 1, row); in JSON lines the number is the line's, blank lines counted and left out.

    Only line feeds end a line: other separators of Unicode may stand inside a text. Byte-order marks are no part of it.
    What is no row, and a file of another form, is an `InputError` that names `path` and the row or line; so is a folder
    of several splits, which are folders themselves.
    """
    path = restored(path)
    if path.is_dir():
        yield from enumerate(_only_split(path), start=1)
        return
    if not path.is_file():
        raise InputError(f"{path}: {'no plain file' if path.exists() else 'no such file'}; give {FORMS}")
    try:
        with path.open("rb") as plain:
            zipped = plain.peek(2).startswith(b"\x1f\x8b")
            for number, row in _rows(gzip.GzipFile(fileobj=plain) if zipped else plain, path):
                if not isinstance(row, dict):
                    raise InputError(f"{path}: row {number} is not a JSON object with named columns")
                yield number, row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable gzip file ({error}); is the download complete?") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def read_jsonl(path: str | Path, columns: Iterable[str] = ()) -> list[dict]:
    """All rows of a file that a stage wrote; none, or one without `columns`, is an `InputError`."""
    rows = list(rows_in(path))
    for number, row in rows:
        if missing := [name for name in columns if name not in row]:
            raise InputError(f"{path}: row {number} lacks {', '.join(missing)}")
    if not rows:
        raise InputError(f"{path}: no rows")
    return [row for _, row in rows]


def _only_split(folder: Path):
    """The rows of a `datasets` folder, which may have one split."""
    dataset = load_dataset(folder)
    if not isinstance(dataset, dict):
        return dataset
    if len(dataset) > 1:
        raise InputError(f"{folder}: has the splits {', '.join(dataset)}; name one: {folder / next(iter(dataset))}")
    return next(iter(dataset.values()))


def _rows(file: BinaryIO, path: Path) -> Iterator[tuple[int, object]]:
    """(row number, value) of an open file, by what it is."""
    start = file.peek(4)[:4]
    if start == b"PAR1":
        yield from enumerate(_parquet_rows(file, path), start=1)
    elif found := [what for mark, what in PACKED.items() if start.startswith(mark)]:
        raise InputError(f"{path}: {found[0]} file; unpack it, and give {FORMS}")
    elif b"\0" in start:
        fix = f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > NEW"
        raise InputError(f"{path}: not UTF-8 text, more likely UTF-16; {fix}")
    else:
        yield from _json_rows(((number, _text(line, number, path)) for number, line in enumerate(file, start=1)), path)


def _parquet_rows(file: BinaryIO, path: Path) -> Iterator[dict]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        for batch in ParquetFile(file).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); is the download complete?") from error


def _text(line: bytes, number: int, path: Path) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {line[error.start]:#x}"
        raise InputError(f"{path}: line {number} is not UTF-8 text ({byte}); convert the file to UTF-8") from error


def _json_rows(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[tuple[int, object]]:
    """A value a line; where the first line is but the beginning of one: values over several lines, or a list of rows.

    `lines`: (number, text) of each.
    """
    filled, first = ((number, text) for number, line in lines if (text := line.strip())), True
    for number, line in filled:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if first and getattr(error, "pos", 0) >= len(line):
                rest = "".join(text for _, text in lines)
                yield from enumerate(_values("\n" * (number - 1) + f"{line}\n{rest}", path), start=1)
                return
            fix = "is the file truncated?" if line.startswith("{") else f"give {FORMS}"
            raise InputError(f"{path}: row {number} is not JSON ({error}); {fix}") from error
        if first and isinstance(value, list) and not next(filled, None):
            yield from enumerate(value, start=1)
            return
        yield number, value
        first = False


def _values(text: str, path: Path) -> list:
    """The rows of a text that holds a list of them, or one after another over several lines."""
    values, decode, blank = [], json.JSONDecoder().raw_decode, re.compile(r"\s*")
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        at = blank.match(text).end()
        while at < len(text):
            value, end = decode(text, at)
            values.append(value)
            at = blank.match(text, end).end()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); is the file truncated?") from error
    return values
