"""Artefacts are whole: whatever ends a write, and wherever, the old one or the new one is there, and nothing beside."""

import errno
import inspect
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from datasets import Dataset

from srmir_lib import artifacts
from srmir_lib.artifacts import as_written, atomic_path, read_json, restored, save_dataset, write_json, write_jsonl
from srmir_lib.errors import InputError
from srmir_lib.rows import read_jsonl

FAULTS = {
    "an exception": lambda: RuntimeError("a cell raised"),
    "ctrl-C or SIGTERM": KeyboardInterrupt,
    "a full disk": lambda: OSError(errno.ENOSPC, "no space left on device"),
}
SWAP_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from srmir_lib import artifacts
if sys.argv[2] == "two renames":
    artifacts._exchange = lambda one, other: False
for number in count(1):
    with artifacts.atomic_path(Path(sys.argv[1])) as fresh:
        write(fresh, number)
    if number == 2:
        print("swapping", flush=True)
"""


def write(place, number) -> None:
    """A folder of three files that hold the same number."""
    place.mkdir()
    for name in "abc":
        (place / name).write_text(str(number))


def whole(place: Path) -> str:
    """The one number that all three files hold."""
    (found,) = {(place / name).read_text() for name in "abc"}
    return found


@pytest.fixture(params=["one step", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(artifacts, "_exchange", lambda one, other: False)
    return request.param


def interrupted_at(step: int, fault, action) -> bool:
    """Run `action`; raise before the line of artifacts.py that is reached as number `step`. Whether one was."""
    reached = 0

    def trace(frame, event, _):
        nonlocal reached
        if frame.f_code.co_filename != artifacts.__file__:
            return None
        if event == "line":
            reached += 1
            if reached == step:
                raise fault()
        return trace

    sys.settrace(trace)
    try:
        action()
    except (RuntimeError, KeyboardInterrupt, OSError, InputError):
        return True
    finally:
        sys.settrace(None)
    return reached >= step


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_fault_at_any_line_of_a_swap_leaves_the_old_or_the_new_one_and_no_litter(tmp_path, way, fault, kind):
    target, seen = tmp_path / "artefact", set()

    def save(number: int) -> None:
        with atomic_path(target) as fresh:
            fresh.write_text(str(number)) if kind == "file" else write(fresh, number)

    def found() -> str:
        restored(target)
        return target.read_text() if kind == "file" else whole(target)

    for step in count(1):
        save(1)
        faulty = interrupted_at(step, FAULTS[fault], lambda: save(2))
        seen.add(found())
        assert seen <= {"1", "2"}
        save(3)
        assert found() == "3" and os.listdir(tmp_path) == ["artefact"], f"litter after a fault at line {step}"
        if not faulty:
            break
    assert step > 12 and seen == {"1", "2"}, "faults came before the swap and after it"


def test_twenty_kills_leave_the_old_or_the_new_one(tmp_path, way):
    target, chance = tmp_path / "artefact", random.Random(0)
    code = inspect.getsource(write) + SWAP_FOR_EVER
    for _ in range(20):
        swapping = subprocess.Popen([sys.executable, "-c", code, target, way], stdout=subprocess.PIPE, text=True)
        assert swapping.stdout.readline() == "swapping\n"
        time.sleep(chance.uniform(0, 0.02))
        swapping.send_signal(signal.SIGKILL)
        swapping.wait()
        swapping.stdout.close()
        assert int(whole(restored(target))) >= 2
    with atomic_path(target) as fresh:
        write(fresh, 0)
    assert whole(target) == "0" and os.listdir(tmp_path) == ["artefact"]


@pytest.mark.parametrize("old", [None, "file", "folder"])
def test_a_body_that_writes_nothing_is_an_error_and_leaves_the_old_one(tmp_path, way, old):
    target = tmp_path / "artefact"
    if old:
        target.write_text("1") if old == "file" else write(target, 1)
    with pytest.raises(FileNotFoundError, match="nothing was written: .*artefact"), atomic_path(target):
        pass
    assert os.listdir(tmp_path) == (["artefact"] if old else [])
    assert old != "folder" or whole(target) == "1"


def test_what_is_read_after_a_cut_off_swap_is_the_old_one(tmp_path):
    """As a kill between two renames leaves it."""
    write_json(tmp_path / ".stage.old/metrics.json", {"a": 1})
    assert read_json(tmp_path / "stage/metrics.json") == {"a": 1}
    write_json(tmp_path / ".one.json.old", 2)
    assert read_json(tmp_path / "one.json") == 2
    save_dataset(Dataset.from_dict({"a": [3]}), tmp_path / ".data.old")
    assert artifacts.load_dataset(tmp_path / "data")["a"][:] == [3]
    assert sorted(os.listdir(tmp_path)) == ["data", "one.json", "stage"]


def test_a_folder_that_another_process_is_writing_is_no_litter(tmp_path):
    alive = tmp_path / f".artefact.{os.getppid()}-01234567"
    alive.mkdir()
    write_json(tmp_path / "artefact", 1)
    assert alive.is_dir()
    with atomic_path(tmp_path / "artefact") as outer:
        with ThreadPoolExecutor(1) as other:
            other.submit(write_json, tmp_path / "artefact", 2).result()
        outer.write_text("3")
    assert read_json(tmp_path / "artefact") == 3, "nor what another thread is writing"


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_artefacts_are_readable_as_the_umask_says(tmp_path, way, umask, file, folder):
    before = os.umask(umask)
    try:
        for _ in range(2):
            write_json(tmp_path / "numbers/one.json", 1)
            save_dataset(Dataset.from_dict({"a": [1]}), tmp_path / "data")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {path.name: mode for path, mode in modes.items() if mode != (folder if path.is_dir() else file)} == {}


def test_a_line_of_json_ends_at_a_newline_alone(tmp_path):
    rows = [{"answer": "one\u2028two\u0085three\u2029four\x1c"}, {"answer": "five"}]
    assert read_jsonl(write_jsonl(tmp_path / "a.jsonl", rows)) == rows
    (tmp_path / "b.jsonl").write_text('{"a": "\u2028"}\n\n{"a": \n')
    with pytest.raises(InputError, match="b.jsonl: row 3 is not JSON"):
        read_jsonl(tmp_path / "b.jsonl")


@pytest.mark.parametrize("lack", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")])
def test_a_lack_of_memory_is_no_damage(lack):
    with pytest.raises(type(lack)), as_written("folder"):
        raise lack


def test_whatever_a_damaged_file_raises_names_it_in_one_line():
    for error, said in {
        KeyError("weight"): "lacks 'weight'",
        ValueError("two\nlines"): "two",
        OSError(): "OSError",
    }.items():
        with (
            pytest.raises(InputError, match=f"^folder/a: damaged .{said}.; run its stage again$"),
            as_written("folder/a"),
        ):
            raise error
