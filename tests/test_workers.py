"""Stages side by side: which may, that they do, and what happens when one of them fails or the run is stopped."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest

from srmir_lib.cli import main
from srmir_lib.errors import InputError
from srmir_lib.runner.execute import Board
from srmir_lib.runner.manifest import cores, threads
from srmir_lib.runner.series import Runner
from srmir_lib.runner.workers import needs_of, next_to_start

PARAMETERS = 'preset: str = "lab"  # preset\noutput_dir: str = ""  # folder\nseed: int = 0  # seed'
OPEN = "from srmir_lib.runner.stage import Stage\nstage = Stage({name!r}, preset, output_dir)\n{reads}"
SAVE = "stage.path({name!r}).write_text(str(seed))"
MEET = """import os, time
seen = os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OMP_NUM_THREADS")
(stage.root / ("here_" + stage.notebook)).write_text(str(seen))
deadline = time.monotonic() + 60
while not (stage.root / {other!r}).exists():
    assert time.monotonic() < deadline, "the other never came"
    time.sleep(0.05)
"""


def stage(root: Path, name: str, reads: list[str], *cells: str, **metadata) -> None:
    """A notebook that reads all of `reads` and writes a file of its own name."""
    lines = "\n".join(f"stage.input({other!r}, {other!r})" for other in reads)
    sources = [PARAMETERS, OPEN.format(name=name, reads=lines), *cells, SAVE.format(name=name)]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata |= {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book.metadata["srmir"] = metadata
    nbformat.write(book, root / f"notebooks/{name}.ipynb")
    (root / f"params/lab/{name}.yaml").write_text("")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """01 is read by 02 and 03, which wait for each other; 04 reads both."""
    for folder in ("notebooks", "params/lab"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    stage(tmp_path, "01_make", [])
    stage(tmp_path, "02_left", ["01_make"], MEET.format(other="here_03_right"))
    stage(tmp_path, "03_right", ["01_make"], MEET.format(other="here_02_left"))
    stage(tmp_path, "04_end", ["02_left", "03_right"])
    monkeypatch.setenv("SRMIR_ROOT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def manifest(root: Path, name: str) -> dict:
    return json.loads((root / "outputs/lab" / name / "manifest.json").read_text())


def test_two_stages_that_need_the_same_run_side_by_side(root, capfd, monkeypatch):
    monkeypatch.setattr(Board.__init__, "__defaults__", (None, 0.05))  # stands are shown twenty times a second
    assert main(["run", "lab", "--jobs", "2"]) == 0
    assert [manifest(root, name)["jobs"] for name in ("01_make", "02_left", "03_right", "04_end")] == [1, 2, 2, 1]
    told, each = (root / "here_02_left").read_text(), threads(jobs=2)
    assert told == str(("passive", str(each))), "threads that wait must leave the core to the neighbour"
    assert [manifest(root, name)["threads"] for name in ("01_make", "02_left")] == [cores(), each]
    said = capfd.readouterr().out
    assert said.index("03_right: running") < said.index("02_left: done"), "both begin before one ends"
    places = re.findall(r"  cell (\d+)/(\d+) ", said)
    assert places and all(int(at) <= int(of) for at, of in places), "never beyond the last cell"
    table = [line.split()[0] for line in said.splitlines() if " done " in line]
    assert table == ["01_make", "02_left", "03_right", "04_end"], "the table is in running order"
    assert main(["run", "lab", "--jobs", "2"]) == 0
    assert capfd.readouterr().out.count("skipped, ") == 4


def test_a_stage_that_cannot_begin_lets_its_neighbour_come_to_its_end(root, capsys, monkeypatch):
    begin = Runner._begin

    def beginning(runner, task, jobs):
        if task.name == "03_right":
            raise InputError("03_right: cannot begin")
        return begin(runner, task, jobs)

    stage(root, "02_left", ["01_make"], "import time; time.sleep(1)")
    monkeypatch.setattr(Runner, "_begin", beginning)
    assert main(["run", "lab", "--jobs", "2"]) == 2
    assert "03_right: cannot begin" in capsys.readouterr().err
    assert manifest(root, "02_left")["ok"], "what ran beside it has ended"


def test_more_notebooks_than_cores_have_one_thread_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("srmir_lib.runner.manifest.cores", lambda: 2)
    assert [threads(jobs) for jobs in (1, 2, 3)] == [2, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert [threads(jobs) for jobs in (1, 3)] == [5, 5], "what the user has set stays"


def test_after_a_failure_what_runs_comes_to_its_end_and_nothing_else_begins(root, capfd):
    stage(root, "02_left", ["01_make"], MEET.format(other="here_03_right"), "assert seed > 0, 'seed is zero'")
    meet, imported = MEET.format(other="here_02_left"), "from srmir_lib.runner.series import at_work"
    mine, other = (f"at_work(stage.root / 'outputs/lab/.{name}.work')" for name in ("03_right", "02_left"))
    late = (
        f"while {other}:\n    assert time.monotonic() < deadline, 'it failed, and is not running'\n    time.sleep(0.05)"
    )
    stage(root, "03_right", ["01_make"], meet, f"{imported}\n{late}\nassert {mine}, 'this one is'")
    assert main(["run", "lab", "--jobs", "2"]) == 1
    out, error = capfd.readouterr()
    assert error.startswith("srmir: 02_left, cell 5, In [5]: AssertionError: seed is zero") and error.count("\n") == 1
    assert "03_right: done" in out and manifest(root, "03_right")["ok"], "the neighbour's work is kept"
    assert "04_end" not in out


def test_a_kernel_that_is_killed_is_one_line(root, capfd):
    dies = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    stage(root, "02_left", ["01_make"], MEET.format(other="here_03_right"), dies)
    assert main(["run", "lab", "--jobs", "2"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("srmir: 02_left, cell 5: its kernel died, most often for lack of memory")
    assert error.count("\n") == 1
    assert manifest(root, "03_right")["ok"]


def test_a_kernel_that_does_not_start_is_one_line_with_its_reason(root, monkeypatch, tmp_path, capfd):
    (tmp_path / "ipykernel.py").write_text("raise SystemExit('no kernel today')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    assert main(["run", "lab", "01"]) == 1
    assert (
        capfd.readouterr().err
        == "srmir: 01_make: its kernel did not start: Kernel died before replying to kernel_info; no kernel today\n"
    )


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_run_is_the_end_of_its_kernels_and_what_they_started(root, stop):
    for name in ("02_left", "03_right"):
        child = "import subprocess\nsubprocess.Popen(['sleep', '300'])\n"
        stage(root, name, ["01_make"], child + MEET.format(other="never"))
    command = [sys.executable, "-m", "srmir_lib", "run", "lab", "--jobs", "2"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not all((root / f"here_{name}").exists() for name in ("02_left", "03_right")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.1)
    below = psutil.Process(run.pid).children(recursive=True)
    names = [process.name() for process in below]
    os.kill(run.pid, stop)
    _, error = run.communicate(timeout=60)
    if stop != signal.SIGKILL:
        assert (run.returncode, error) == (130, "srmir: interrupted; the same command goes on from here\n")
    assert names.count("sleep") == 2 and len(names) >= 4, "two kernels, each with a child of its own"
    assert not psutil.wait_procs(below, timeout=30)[1], "something outlived the run"


def test_jobs_must_be_one_at_least(root, capsys):
    assert main(["run", "lab", "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "srmir: --jobs 0: give a number from 1 on\n"


def plan(**reads: list[str]) -> list:
    """Tasks by name; one whose name ends in `_alone` wants to be."""
    return [
        SimpleNamespace(name=name, reads=[(other, "") for other in others], alone=name.endswith("_alone"))
        for name, others in reads.items()
    ]


def test_which_stage_may_start_beside_which():
    tour, data, rms, left, right, end = tasks = plan(
        tour=[], data_alone=[], rms=["data_alone"], left=["rms"], right=["rms", "gone"], end=["left", "right"]
    )
    needs = needs_of(tasks)
    assert needs["end"] == {"data_alone", "rms", "left", "right", "gone"}, "needs of needs count"
    assert next_to_start(tasks, [], needs, 1) == (tour, False), "one job: in order, each in this process"
    assert next_to_start(tasks, [], needs, 2) == (data, False), "others wait for it; it wants to be alone"
    assert next_to_start(tasks[1:], ["tour"], needs, 2) == (None, False)
    assert next_to_start([tour, *tasks[2:]], [], needs, 2) == (rms, True), "what others wait for comes first"
    assert next_to_start([tour, *tasks[3:]], ["rms"], needs, 2) == (tour, True)
    assert next_to_start(tasks[1:], [], needs, 2) == (data, False)
    assert next_to_start(tasks[2:], ["data_alone"], needs, 2) == (None, False), "what it needs still runs"
    assert next_to_start(tasks[2:], [], needs, 2) == (rms, False), "no other is ready: it may run in this process"
    assert next_to_start([left, right, end], [], needs, 1) == (left, False)
    assert next_to_start([left, right, end], [], needs, 2) == (left, True)
    assert next_to_start([right, end], ["left"], needs, 2) == (right, True)
    assert next_to_start([right, end], ["left", "another"], needs, 2) == (None, False), "no more than so many"
    assert next_to_start([end], ["right"], needs, 2) == (None, False)
    assert next_to_start([end], [], needs, 2) == (end, False)
    assert next_to_start([], [], needs, 2) == (None, False)


def test_a_stage_that_measures_time_has_the_machine_to_itself():
    a, cost_alone, b, c = tasks = plan(a=[], cost_alone=[], b=[], c=[])
    needs = needs_of(tasks)
    assert next_to_start(tasks, [], needs, 3) == (a, True)
    assert next_to_start([cost_alone, b, c], ["a"], needs, 3) == (b, True), "it is passed over while others run"
    assert next_to_start([cost_alone], ["a"], needs, 3) == (None, False)
    assert next_to_start([cost_alone, b, c], [], needs, 3) == (cost_alone, False)


def test_each_notebook_has_its_own_memory_measured(root):
    """One keeps 200 MB until the other, side by side, is about to end."""
    stage(root, "02_left", ["01_make"], "block = bytearray(b'x') * 200_000_000", MEET.format(other="here_03_right"))
    late = MEET.format(other="here_02_left") + "time.sleep(1.5)"
    stage(root, "03_right", ["01_make"], late)
    assert main(["run", "lab", "--jobs", "2"]) == 0
    left, right = (manifest(root, name)["peak_memory_mb"] for name in ("02_left", "03_right"))
    assert 20 < right < 150 and left > 200


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_notebooks_side_by_side_share_one_line():
    board = Board(Terminal())
    board.show("a", "  a  cell 1/9")
    board.show("b", "  b  cell 2/9")
    board.remove("a")
    board.show("b", "  b  cell 3/9")
    drawn = board.stream.getvalue().split("\r\x1b[K")
    assert [line.split() for line in drawn[1:]] == [
        ["a", "cell", "1/9"],
        ["a", "cell", "1/9", "b", "cell", "2/9"],
        [],
        ["b", "cell", "3/9"],
    ]
    assert all(len(line) < 120 for line in drawn) and board.every == 0.5


def test_jobs_are_for_the_series_of_a_preset(root):
    runner = Runner("lab")
    results = list(runner.run(runner.plan(["01_make"]), say=lambda line: None, jobs=2))
    assert [result.state for result in results] == ["done"]
