"""Kernels are forks of a process that has imported everything: they must be as fresh, and as mortal, as others."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from srmir_lib.errors import InputError
from srmir_lib.runner import warm_kernels
from srmir_lib.runner.execute import execute
from srmir_lib.runner.warm_kernels import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="kernels are forked on Linux only")

FACTS = """
import os, sys, json
facts = {"loaded": sorted({"trl", "peft", "srmir_lib"} & sys.modules.keys()), "left": hasattr(os, "mark")}
facts |= {"cwd": os.getcwd(), "hash": hash("a"), "parent": os.getppid(), "group": os.getpgid(0) == os.getpid()}
os.mark = 1
import helper
print(json.dumps(facts | {"helper": helper.NAME, "asked": os.environ.get("SRMIR_ASKED")}))
"""


def notebook(folder: Path, *cells: str) -> Path:
    parameters = nbformat.v4.new_code_cell('preset: str = "lab"')
    parameters.metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, cells)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "book.ipynb")
    return folder / "book.ipynb"


def test_a_figure_of_a_forked_kernel_is_in_the_notebook(tmp_path):
    drawn, executed = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()", tmp_path / "executed.ipynb"
    execute(notebook(tmp_path, drawn), executed, {}, tmp_path)
    shown = nbformat.read(executed, as_version=4).cells[-1].outputs
    assert any("image/png" in output.get("data", {}) for output in shown), "the libraries loaded first took its backend"


def test_an_installation_without_the_provisioner_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(warm_kernels, "entry_points", lambda **_: ())
    with pytest.raises(InputError, match="install it again: make setup"):
        warm_kernels.can_fork()


def facts(folder: Path) -> dict:
    executed = folder / "executed.ipynb"
    execute(notebook(folder, FACTS), executed, {}, folder)
    return json.loads(nbformat.read(executed, as_version=4).cells[-1].outputs[0]["text"])


def test_a_kernel_finds_the_libraries_loaded_and_nothing_that_another_left(tmp_path, monkeypatch):
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helper.py").write_text(f"NAME = {name!r}\n", encoding="utf8")
        monkeypatch.setenv("SRMIR_ASKED", name)
        found.append(facts(folder))
    for name, fact in zip(("one", "two"), found, strict=True):
        assert fact["loaded"] == ["peft", "trl"], "this library itself must be imported anew"
        assert not fact["left"] and fact["group"]
        assert (fact["cwd"], fact["helper"], fact["asked"]) == (str(tmp_path / name), name, name)
    assert found[0]["parent"] == found[1]["parent"] != os.getpid(), "both are forks of one server"
    seeded = [sys.executable, "-c", "print(hash('a'))"]
    said = subprocess.run(seeded, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True).stdout
    assert found[0]["hash"] == found[1]["hash"] == int(said), "hashes must be those of any kernel that is run"


def test_a_kernel_does_not_outlive_the_run_that_started_it(tmp_path):
    waits = "import os, time, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(300)"
    book, there = notebook(tmp_path, waits), tmp_path / "pid"
    code = "import sys; from pathlib import Path; from srmir_lib.runner.execute import execute\n"
    code += "execute(Path(sys.argv[1]), Path('executed.ipynb'), {}, Path('.').resolve())"
    runs = subprocess.Popen([sys.executable, "-c", code, str(book)], cwd=tmp_path, env=os.environ)
    deadline = time.monotonic() + 90
    while not (there.exists() and there.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    kernel = psutil.Process(int(there.read_text()))
    runs.kill()
    runs.wait()
    gone, alive = psutil.wait_procs([kernel], timeout=30)
    assert gone and not alive, f"kernel {kernel.pid} outlived the run that started it"
