"""Ways in which folders get damaged, drawn at random: what a full disk, a broken copy or a slip of the hand leaves."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import yaml

from srmir_lib.cli import main

TEXTS = {".json": json, ".ipynb": json, ".yaml": yaml}
OTHERS = [None, True, 3, -1, 0.5, float("nan"), "x", "", [], ["x"], {}, {"x": 1}]


def damage(folder: Path, rng: Random) -> str:
    """Damage one file or folder below `folder`; returns what was done."""
    while True:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        way, file = rng.choice(WAYS), rng.choice(files)
        if told := way(file, folder, rng):
            return f"{way.__name__} {file.relative_to(folder)}{told if isinstance(told, str) else ''}"


def deleted(file: Path, folder: Path, rng: Random) -> bool:
    file.unlink()
    return True


def cut(file: Path, folder: Path, rng: Random) -> str:
    content = file.read_bytes()
    at = rng.randrange(len(content) + 1)
    file.write_bytes(content[:at])
    return f" behind byte {at}"


def emptied(file: Path, folder: Path, rng: Random) -> bool:
    file.write_bytes(b"")
    return True


def noise(file: Path, folder: Path, rng: Random) -> bool:
    file.write_bytes(rng.randbytes(rng.randrange(1, 2000)))
    return True


def flipped(file: Path, folder: Path, rng: Random) -> str | None:
    content = bytearray(file.read_bytes())
    if not content:
        return None
    at = rng.randrange(len(content))
    content[at] ^= rng.randrange(1, 256)
    file.write_bytes(content)
    return f" at byte {at}"


def replaced(file: Path, folder: Path, rng: Random) -> str:
    value = rng.choice(OTHERS)
    file.write_text(json.dumps(value))
    return f" by {value!r}"


def swapped(file: Path, folder: Path, rng: Random) -> str | None:
    alike = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != file and p.suffix == file.suffix]
    if not alike:
        return None
    other = rng.choice(alike)
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    return f" with {other.relative_to(folder)}"


def retyped(file: Path, folder: Path, rng: Random) -> str | None:
    """One value of a JSON or YAML file becomes one of another type, or goes."""
    kind = TEXTS.get(file.suffix)
    if kind is None:
        return None
    value = json.loads(file.read_text()) if kind is json else yaml.safe_load(file.read_text())
    places = list(_places(value))
    if not places:
        return None
    holder, key = rng.choice(places)
    known, found = [other for other in OTHERS if type(other) is not type(holder[key])], repr(holder[key])[:40]
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
        told = "nothing"
    else:
        holder[key] = rng.choice(known)
        told = repr(holder[key])
    file.write_text(json.dumps(value) if kind is json else yaml.safe_dump(value))
    return f": {key!r} from {found} to {told}"


def reshaped(file: Path, folder: Path, rng: Random) -> str | None:
    """A tensor of a safetensors file gets another shape, type, place or name."""
    if file.suffix != ".safetensors":
        return None
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    tensor, way = header[name], rng.choice(("flat", "turned", "larger", "type", "shift", "name", "gone", "notes"))
    if way == "flat":
        count = 1
        for n in tensor["shape"]:
            count *= n
        tensor["shape"] = [count]
    elif way == "turned":
        tensor["shape"] = [*reversed(tensor["shape"]), 1]
    elif way == "larger":
        tensor["shape"] = [2 * n for n in tensor["shape"]]
    elif way == "type":
        tensor["dtype"] = rng.choice(("I32", "U8", "F64", "BOOL", "X"))
    elif way == "shift":
        tensor["data_offsets"] = [n + 4 for n in tensor["data_offsets"]]
    elif way == "name":
        header[name + "s"] = header.pop(name)
    elif way == "gone":
        del header[name]
    else:
        header.pop("__metadata__", None)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f": {name} {way}"


def folder_for_file(file: Path, folder: Path, rng: Random) -> bool:
    file.unlink()
    file.mkdir()
    if rng.random() < 0.5:
        (file / "x").write_text("x")
    return True


def file_for_folder(file: Path, folder: Path, rng: Random) -> str | None:
    place = file.parent
    if place == folder:
        return None
    shutil.rmtree(place)
    place.write_text(rng.choice(("", "x", "{}")))
    return ", its folder"


def folder_gone(file: Path, folder: Path, rng: Random) -> str | None:
    if file.parent == folder:
        return None
    shutil.rmtree(file.parent)
    return ", its folder"


def dangling(file: Path, folder: Path, rng: Random) -> bool:
    file.unlink()
    file.symlink_to(folder / "nowhere")
    return True


WAYS = (deleted, cut, emptied, noise, flipped, replaced, swapped, retyped, retyped, retyped, reshaped, folder_for_file)
WAYS += (file_for_folder, folder_gone, dangling)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """What is below a folder: the bytes of files, where links lead, None for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        link = path.is_symlink()
        found[str(path.relative_to(folder))] = (
            str(path.readlink()) if link else path.read_bytes() if path.is_file() else None
        )
    return found


def tried(asked: list[str], what: str, capsys) -> tuple[int, str]:
    """The exit code, 0 or 2, and what was said: nothing in the first case, one line in the second."""
    capsys.readouterr()
    try:
        code = main(asked)
    except BaseException as error:
        raise AssertionError(what) from error
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.strip()]
    assert code in (0, 2) and len(lines) == (code == 2) and said[:7] in ("", "srmir: "), (what, code, said)
    return code, f"{what}: {said}"


def _places(value: object) -> Iterator[tuple]:
    """Every (holder, key) in a nested value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
