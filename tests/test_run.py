"""The runner on a series of two small notebooks: strict before it starts, careful while it runs, exact afterwards."""

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from srmir_lib.artifacts import sha256
from srmir_lib.cli import main
from srmir_lib.errors import InputError
from srmir_lib.runner import manifest
from srmir_lib.runner.execute import KERNEL_ENVIRONMENT, Board, Watch, clear_bars
from srmir_lib.runner.manifest import elapsed
from srmir_lib.runner.notebook import Notebook, load_values
from srmir_lib.runner.series import Runner

# What an annotation could do if it were evaluated: escape empty builtins, and run a command.
CLASSES = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close']"
COMMAND = f"{CLASSES}[0].__init__.__globals__['system']('touch ran')"
COMMON = 'preset: str = "lab"  # preset\noutput_dir: str = ""  # empty: outputs/<preset>\nseed: int = 0  # seed\n'
MAKE = [
    "# 1 · Make",
    COMMON
    + "rate: float = 1.0e-3  # learning rate\nweights: list[float] = [1.0, 2]  # one a model\nlimit: int = 9  # most",
    "from srmir_lib.artifacts import write_json\nfrom srmir_lib.runner.stage import Stage\n"
    "stage = Stage('01_make', preset, output_dir)",
    "write_json(stage.path('numbers') / 'data.json', {'rate': rate, 'seed': seed})\n"
    "if not stage.path('part.txt').exists():\n    stage.path('part.txt').write_text(output_dir)\n"
    "else:\n    stage.path('kept.txt').write_text('kept')\n"
    "if place := stage.scratch('said'):\n    place.mkdir(parents=True, exist_ok=True)\n    (place / 'one').touch()",
    "import time\nwhile (stage.root / 'wait').exists():\n    time.sleep(0.05)",
    "stage.save_metrics({'rate': rate})",
    "## Check",
    "assert seed < limit",
]
USE = [
    "# 2 · Use",
    COMMON + 'source: str = "01_make"  # whose numbers',
    "from srmir_lib.artifacts import read_json, write_json\nfrom srmir_lib.runner.stage import Stage\n"
    "stage = Stage('02_use', preset, output_dir)\n"
    "numbers = read_json(stage.input(source, 'numbers') / 'data.json')",
    "write_json(stage.path('copy.json'), numbers)",
]


def write_notebook(path: Path, sources: list[str]) -> None:
    cells = [
        nbformat.v4.new_markdown_cell(s, id=f"cell-{i}")
        if s.startswith("#")
        else nbformat.v4.new_code_cell(s, id=f"cell-{i}")
        for i, s in enumerate(sources)
    ]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of two notebooks, and a user whose own `python3` kernel is broken."""
    root, user = tmp_path / "repository", tmp_path / "user/kernels/python3"
    for folder in (root / "notebooks", root / "params/lab", root / "srmir_lib", user):
        folder.mkdir(parents=True)
    (user / "kernel.json").write_text('{"argv": ["false"], "display_name": "Python 3", "language": "python"}')
    (root / "pyproject.toml").touch()
    write_notebook(root / "notebooks/01_make.ipynb", MAKE)
    write_notebook(root / "notebooks/02_use.ipynb", USE)
    (root / "params/lab/01_make.yaml").write_text("rate: 5.0e-3\n")
    (root / "params/lab/02_use.yaml").write_text("")
    monkeypatch.setenv("SRMIR_ROOT", str(root))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    return root


@pytest.fixture(scope="session")
def after(tmp_path_factory):
    """Brings a fresh `root` to where a command leaves it: kernels do it for the first test, a copy for all others."""
    kept = tmp_path_factory.mktemp("kept")

    def bring(root: Path, *command: str) -> Path:
        done = kept / "_".join(command)
        if not done.exists():
            (root / "srmir_lib").rmdir()
            assert main([*command]) == 0
            shutil.copytree(root, done)
        else:
            shutil.rmtree(root)
            shutil.copytree(done, root)
        return root

    return bring


@pytest.fixture
def finished(root, after):
    """The same repository after `srmir run lab`."""
    return after(root, "run", "lab")


def states(**settings) -> list[str]:
    runner = Runner("lab")
    return [result.state for result in runner.status(runner.plan(runner.select(), settings))]


def contents(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in folder.iterdir() if not p.name.startswith(".")}


# What a wrong request says: one line with what, where and the fix, before anything runs.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "nope: unknown preset; there are lab"),
        (["lab", "07"], "07: unknown notebook; preset lab has 01_make, 02_use"),
        (["lab", "0"], "0: more than one notebook"),
        (["lab", "--from", "A9"], "A9: unknown notebook"),
        (["lab", "--set", "rats=1"], "--set rats: not a parameter that can be set in 01_make, 02_use"),
        (
            ["lab", "02", "--set", "rate=1.0"],
            "--set rate: not a parameter that can be set in 02_use; 01_make can be told",
        ),
        (["lab", "--set", "preset=smoke"], "--set preset: not a parameter that can be set"),
        (["lab", "--set", "rate"], "--set rate: write NAME=VALUE"),
        (["lab", "--set", "rate=5e-6"], "--set: rate = '5e-6': it is text, and must be a number; write 5.0e-6"),
        (["lab", "--set", "seed=1.5"], "--set: seed = 1.5: it must be a valid integer"),
        (["lab", "--set", "seed='3'"], "--set: seed = '3': it is text, and must be a number; write 3"),
        (["lab", "--set", "seed=true"], "--set: seed = True: it must be a valid integer"),
        (["lab", "--set", "weights=[1.0, x]"], "--set: weights.1 = 'x': it must be a valid number"),
        (["lab", "--set", "rate=.nan"], "--set: rate = nan: it must be a finite number"),
        (["lab", "--set", "rate=[1"], "--set rate=[1: '[1' is not a YAML value"),
        (["lab", "02"], "02_use reads outputs/lab/01_make/numbers, which is missing; run `srmir run lab 01` first"),
    ],
)
def test_wrong_request_is_one_line_and_exit_code_2(root, capsys, arguments, message):
    assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"srmir: {message}")
    assert not (root / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rats: 1", "params/lab/01_make.yaml: there is no setting rats; there are preset, output_dir, seed, rate"),
        ("rate: 5e-6", "params/lab/01_make.yaml: rate = '5e-6': it is text, and must be a number; write 5.0e-6"),
        ("- 1", "01_make.yaml: write one `name: value` a line, not a list"),
        ("rate: [", "01_make.yaml: not valid YAML"),
        ("preset: smoke", "params/lab/01_make.yaml: write `preset: lab`"),
        ("output_dir: elsewhere", "params/lab/01_make.yaml: write `preset: lab`, and leave output_dir to the runner"),
    ],
)
def test_wrong_parameter_file_is_refused(root, capsys, text, message):
    (root / "params/lab/01_make.yaml").write_text(text)
    assert main(["run", "lab"]) == 2
    assert message in capsys.readouterr().err


def test_parameter_file_without_notebook_and_damaged_notebook(root, capsys):
    (root / "params/lab/03_gone.yaml").touch()
    assert main(["run", "lab"]) == 2
    assert "03_gone.yaml: there is no notebook notebooks/03_gone.ipynb" in capsys.readouterr().err
    (root / "params/lab/03_gone.yaml").unlink()
    (root / "notebooks/02_use.ipynb").write_text("{")
    assert main(["run", "lab"]) == 2
    assert "02_use.ipynb: not a readable notebook" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("rate = 1.0", "not `rate = 1.0`"),
        ("rate: float = 1.0 + x", "not `rate: float = 1.0 [+] x`"),
        ("path: Path = ''", "parameters cell 2: write .*, not `path: Path = ''`"),
        ("rate: list[Path] = []", "not `rate: list.Path. = ..`"),
        ("rate: tuple[int, int] = (1, 2)", "not `rate: tuple"),
        (f"rate: {COMMAND} = 1.0", "parameters cell 2: write `name: type = literal` with types of str, .*not `rate: "),
        (f"rate: list[{COMMAND}] = []", "not `rate: list"),
        (f"rate: float | {COMMAND} = 1.0", "not `rate: float "),
    ],
)
def test_parameters_cell_holds_annotated_literals_only(root, cell, message, monkeypatch):
    path = root / "notebooks/01_make.ipynb"
    monkeypatch.chdir(root)
    write_notebook(path, [MAKE[0], COMMON + cell])
    with pytest.raises(InputError, match=message):
        Notebook.load(path)
    assert not (root / "ran").exists(), "an annotation is read, never executed"


def test_types_that_a_parameter_may_have(root):
    path = root / "notebooks/01_make.ipynb"
    types = ("dict[str, list[int]]", "int | None", "None | str", "list", "list[str | dict]", "bool")
    write_notebook(path, [MAKE[0], COMMON + "\n".join(f"p{i}: {name} = None" for i, name in enumerate(types))])
    found = [Notebook.load(path).model.model_fields[f"p{i}"].annotation for i in range(len(types))]
    assert found == [dict[str, list[int]], int | None, None | str, list, list[str | dict], bool]


def test_inputs_are_found_in_the_cells_or_listed_in_the_metadata(root):
    path = root / "notebooks/02_use.ipynb"
    assert Notebook.load(path).reads({"source": "03_other"}) == [("03_other", "numbers")]
    assert Notebook.load(path).reads({"source": ""}) == [], "an empty notebook name: nothing is read"
    write_notebook(path, [*USE, "stage.input('01_make', source) if source else None"])
    assert ("01_make", "world.json") in Notebook.load(path).reads({"source": "world.json"})
    assert Notebook.load(path).reads({"source": ""}) == [], "an empty name of a parameter: the same"
    write_notebook(path, [*USE, "stage.input('01_make', '')"])
    assert ("01_make", "") in Notebook.load(path).reads({"source": ""}), "written so, it means all"
    write_notebook(path, [*USE, "stage.base_model('')", "for n in 'ab':\n    stage.input(n, 'policy')"])
    with pytest.raises(
        InputError, match=r"stage.input\(n, 'policy'\): use literals or parameters, or list srmir.reads"
    ):
        Notebook.load(path).reads({"source": "01_make"})
    book = nbformat.read(path, 4)
    book.metadata["srmir"] = {"reads": ["a/policy", "b"]}
    nbformat.write(book, path)
    found = Notebook.load(path).reads({"source": "01_make"})
    assert found == [("01_data", "base_model"), ("01_make", "numbers"), ("a", "policy"), ("b", "")]


@pytest.mark.parametrize(("writes", "after"), [(["records"], "done"), ([], "stale")])
def test_a_folder_that_a_stage_writes_beside_its_own_is_no_input(root, writes, after):
    (root / "outputs/reference/records").mkdir(parents=True)
    path = root / "notebooks/01_make.ipynb"
    cells = [MAKE[0], COMMON + 'records: str = "outputs/reference/records"  # where fits are kept', MAKE[2]]
    write_notebook(path, [*cells, "(stage.resolve(records) / 'fit.json').write_text('{}')", "stage.save_metrics({})"])
    book = nbformat.read(path, 4)
    book.metadata["srmir"] = {"writes": writes}
    nbformat.write(book, path)
    (root / "params/lab/01_make.yaml").write_text("")
    runner = Runner("lab")
    (task,) = runner.plan(["01_make"])
    assert [result.state for result in runner.run([task])] == ["done"] and runner.state(task) == after


def test_baselines_run_before_the_evaluation_and_appendices_only_when_asked(root):
    for name in ("06_evaluation", "A0_baselines", "A1_more", "05_x"):
        (root / f"params/lab/{name}.yaml").touch()
    runner = Runner("lab")
    assert runner.select() == ["01_make", "02_use", "A0_baselines", "05_x", "06_evaluation"]
    assert runner.select(everything=True)[-1] == "A1_more"
    assert runner.select(["A1", "01"]) == ["01_make", "A1_more"]
    assert runner.select(start="A0") == ["A0_baselines", "05_x", "06_evaluation"]


def test_place_that_cannot_be_written_is_one_line(root, capsys):
    (root / "outputs").write_text("a file where the folder should be")
    assert main(["run", "lab"]) == 2
    error = capsys.readouterr().err
    assert "outputs/lab: cannot write here" in error and error.count("\n") == 1


def test_second_run_at_the_same_time_is_refused(root, capsys):
    (root / "outputs/lab").mkdir(parents=True)
    with (root / "outputs/lab/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", "lab"]) == 2
    assert "another `srmir run lab` is at work" in capsys.readouterr().err


def test_command_line_starts_without_the_slow_imports(root):
    check = "import sys; from srmir_lib.cli import main; main(['run', 'lab', '07']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert not {"torch", "papermill", "transformers", "numpy"} & set(done.stdout.split())
    assert "unknown notebook" in done.stderr


# What a run leaves behind.


def test_run_records_what_it_did_and_the_second_run_skips_it(finished, capsys):
    folder = finished / "outputs/lab/01_make"
    record = json.loads((folder / "manifest.json").read_text())
    assert record["ok"] and record["preset"] == "lab" and record["notebook"] == "01_make"
    assert record["parameters"]["rate"] == 0.005 and record["parameters"]["weights"] == [1.0, 2.0]
    assert record["seed"] == 0 and record["attempts"] == 1 and record["seconds"] > 0 and record["peak_memory_mb"] > 20
    assert record["started"].endswith("+00:00") and record["versions"]["torch"] and record["threads"] >= 1
    assert record["outputs"].keys() == {"metrics.json", "numbers/data.json", "part.txt"}
    assert record["outputs"]["numbers/data.json"] == sha256(folder / "numbers/data.json")
    used = json.loads((finished / "outputs/lab/02_use/manifest.json").read_text())
    assert used["inputs"].keys() == {"01_make/numbers"}
    # The notebook names the place it was moved to; no secret is anywhere.
    assert 'output_dir = \\"outputs/lab/01_make\\"' in (folder / "01_make.ipynb").read_text()
    everything = "".join(p.read_text() for p in folder.rglob("*") if p.is_file() and p.suffix != ".txt")
    assert ".work" not in everything and "hf_secret" not in everything
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock", "01_make", "02_use", "report"]

    before = contents(folder)
    capsys.readouterr()
    assert main(["run", "lab"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("01_make: skipped") and said[-1] == str(finished / "outputs/lab/report/index.html")
    assert contents(folder) == before
    assert main(["status", "lab"]) == 0
    assert capsys.readouterr().out.count("done") == 2


def test_what_makes_a_stage_run_again(finished):
    assert states() == ["done", "done"]
    assert states(seed=1) == ["stale", "stale"]
    assert states(rate=0.1) == ["stale", "done"]  # 02 is looked at again once 01 has run
    write_notebook(finished / "notebooks/01_make.ipynb", [*MAKE[:-1], "assert seed < limit + 1"])
    assert states() == ["stale", "done"]
    write_notebook(finished / "notebooks/01_make.ipynb", MAKE)
    (finished / "srmir_lib").mkdir()
    (finished / "srmir_lib/artifacts.py").write_text("# another implementation\n")
    assert states() == ["stale", "stale"]
    (finished / "srmir_lib/artifacts.py").unlink()
    (finished / "srmir_lib/plotting.py").write_text("# not imported by these notebooks\n")
    assert states() == ["done", "done"]
    (finished / "outputs/lab/02_use/copy.json").unlink()
    assert states() == ["done", "damaged"]


def test_library_files_count_through_imports_of_imports(root):
    library = root / "srmir_lib"
    (library / "lab").mkdir()
    (library / "runner").mkdir()
    for name, text in {
        "artifacts.py": "def f():\n    import srmir_lib.lab.world",
        "lab/world.py": "from json import loads",
        "lab/words.json": "{}",
        "lab/__init__.py": "",
        "__init__.py": "",
        "runner/__init__.py": "",
        "runner/stage.py": "",
        "unused.py": "",
    }.items():
        (library / name).write_text(text)
    sources, packages = Notebook.load(root / "notebooks/01_make.ipynb").imports(root)
    assert packages == {"time", "json"}
    assert {str(p.relative_to(library)) for p in sources} == {
        "__init__.py", "artifacts.py", "runner/__init__.py", "runner/stage.py",
        "lab/__init__.py", "lab/words.json", "lab/world.py"
    }  # fmt: skip


def test_new_prose_is_shown_without_running_again(finished, capsys):
    write_notebook(finished / "notebooks/01_make.ipynb", ["# 1 · Better words", *MAKE[1:], "## Next"])
    capsys.readouterr()
    assert main(["run", "lab", "01"]) == 0
    assert "01_make: skipped" in capsys.readouterr().out
    book = nbformat.read(finished / "outputs/lab/01_make/01_make.ipynb", 4)
    assert book.cells[0].source == "# 1 · Better words" and book.cells[-1].source == "## Next"
    injected = [cell.source for cell in book.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(injected) == 1 and "rate = 0.005" in injected[0]


def test_solving_an_exercise_runs_nothing_again(finished, capsys):
    """What a reader writes into a tagged cell, and what it imports, decides no result."""
    for solved in ("check('01.1', None)", "import numpy\ncheck('01.1', numpy.sum)"):
        path = finished / "notebooks/01_make.ipynb"
        write_notebook(path, [*MAKE, "## Exercises", solved])
        book = nbformat.read(path, 4)
        book.cells[-1].metadata["tags"] = ["exercise"]
        nbformat.write(book, path)
        capsys.readouterr()
        assert main(["run", "lab", "01"]) == 0
        assert "01_make: skipped" in capsys.readouterr().out
        shown = nbformat.read(finished / "outputs/lab/01_make/01_make.ipynb", 4).cells
        assert [cell.source for cell in shown[-2:]] == ["## Exercises", solved] and shown[-3].execution_count


def test_failed_check_names_notebook_cell_and_reason_and_touches_nothing(finished, capsys):
    folder = finished / "outputs/lab/01_make"
    before = contents(folder)
    assert main(["run", "lab", "--set", "seed=10"]) == 1
    error = capsys.readouterr().err
    assert "01_make, cell 9, In [7]: AssertionError: assert seed < limit" in error and error.count("\n") == 1
    kept = Path(error.rsplit("see ", 1)[1].strip())
    assert kept.is_file() and kept.parent.name == ".01_make.work"
    assert contents(folder) == before and states() == ["done", "done"]


def test_stage_that_reads_all_of_another_depends_on_each_of_its_outputs(finished):
    path = finished / "notebooks/02_use.ipynb"
    book = nbformat.read(path, 4)
    book.metadata["srmir"] = {"reads": ["01_make"]}
    nbformat.write(book, path)
    assert main(["run", "lab"]) == 0
    used = json.loads((finished / "outputs/lab/02_use/manifest.json").read_text())
    assert used["inputs"].keys() == {"01_make", "01_make/numbers"}
    (finished / "outputs/lab/01_make/part.txt").write_text("other")
    assert states() == ["damaged", "stale"]


def test_damaged_input_is_named_and_its_stage_can_be_run_again(finished, capsys):
    (finished / "outputs/lab/01_make/numbers/data.json").write_text('{"rate"')
    assert main(["run", "lab", "02"]) == 2
    expected = "outputs/lab/01_make/numbers/data.json: damaged since it was made; run `srmir run lab 01`"
    assert expected in capsys.readouterr().err
    assert main(["run", "lab", "01"]) == 0
    assert states() == ["done", "done"]


def test_what_datasets_caches_beside_the_data_damages_nothing(root):
    """A reader opens an artefact in a session of their own and maps over it: `datasets` writes beside the data."""
    (root / "srmir_lib").rmdir()
    save = "from datasets import Dataset\nfrom srmir_lib.artifacts import save_dataset\n"
    save += "save_dataset(Dataset.from_dict({'a': [1, 2]}), stage.path('numbers'))"
    write_notebook(root / "notebooks/01_make.ipynb", [*MAKE[:3], save])
    read = [*USE[:2], USE[2].rpartition("\n")[0], "numbers = {'path': str(stage.input(source, 'numbers'))}", USE[3]]
    write_notebook(root / "notebooks/02_use.ipynb", read)
    assert main(["run", "lab", "01"]) == 0
    data = root / "outputs/lab/01_make/numbers"
    before = set(data.iterdir())
    look = "import sys, datasets; datasets.load_from_disk(sys.argv[1]).map(lambda row: {'b': row['a'] + 1})"
    subprocess.run([sys.executable, "-c", look, data], check=True, capture_output=True)
    assert set(data.iterdir()) - before, "the cache file that this test is about"
    assert main(["run", "lab", "02"]) == 0
    assert states() == ["done", "done"]
    assert main(["run", "lab", "01", "--set", "seed=1"]) == 0
    assert {path.name for path in data.iterdir()} == {path.name for path in before}, "a cache of earlier data goes"


PEOPLES = ("notes.txt", "numbers/mine/plot.svg", "look.ipynb", "tmp_notes", "cache-mine", "mine/manifest.json")


def test_what_a_person_put_into_a_stage_stays(finished):
    folder = finished / "outputs/lab/01_make"
    for name in PEOPLES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    write_notebook(finished / "notebooks/01_make.ipynb", [c.replace("part.txt", "other.txt") for c in MAKE])
    for _ in range(2):
        assert main(["run", "lab"]) == 0 and states() == ["done", "done"]
        for name in PEOPLES:
            assert (folder / name).read_text() == "mine"
        assert not (folder / "part.txt").exists(), "what an earlier version of the notebook made is no person's"
        write_notebook(finished / "notebooks/01_make.ipynb", [*(c.replace("part", "other") for c in MAKE), "1 + 1"])
    assert json.loads((folder / "manifest.json").read_text())["outputs"].keys() == {
        "metrics.json", "numbers/data.json", "other.txt"
    }  # fmt: skip


def test_what_stands_where_results_belong_lies_aside(finished, capsys):
    """A result that somebody changed, a folder that no run made; and nothing is for the owner's eyes alone."""
    folder = finished / "outputs/lab/01_make"
    (folder / "numbers/data.json").write_text("mine")
    write_notebook(finished / "notebooks/01_make.ipynb", [*MAKE, "import tempfile\ntempfile.mkstemp(dir=stage.folder)"])
    assert main(["run", "lab", "01"]) == 0 and states() == ["done", "done"]
    assert (folder.with_name("01_make.yours") / "numbers/data.json").read_text() == "mine"
    line = "01_make: files of yours stood where results belong; they lie in outputs/lab/01_make.yours"
    assert f"{line} now\n" in capsys.readouterr().out
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o666 & ~umask()}
    (folder / "manifest.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert main(["run", "lab", "01"]) == 0 and not (folder / "notes.txt").exists()
    assert (folder.with_name("01_make.yours2") / "notes.txt").read_text() == "mine"
    assert f"{line}2 now\n" in capsys.readouterr().out


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_another_version_of_a_package_that_decides_results_makes_a_stage_stale(finished, monkeypatch):
    write_notebook(finished / "notebooks/01_make.ipynb", [*MAKE, "import numpy as np\nfrom sklearn import svm"])
    write_notebook(finished / "notebooks/02_use.ipynb", USE)
    assert main(["run", "lab"]) == 0 and states() == ["done", "done"]
    real = manifest.version
    for package, found in {"numpy": "stale", "scikit-learn": "stale", "torch": "done", "matplotlib": "done"}.items():
        other = lambda name, package=package: "0.0.1" if name == package else real(name)  # noqa: E731
        monkeypatch.setattr(manifest, "version", other)
        assert states() == [found, "done"], f"01 imports numpy and scikit-learn, 02 neither: {package}"


def start_and_wait_for(root: Path, file: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start `srmir run lab 01` on a notebook that waits in its fourth cell; returns it and its kernel's processes."""
    (root / "wait").touch()
    command = [sys.executable, "-m", "srmir_lib", "run", "lab", "01"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (root / "outputs/lab/.01_make.work" / file).exists():
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.05)
    return run, psutil.Process(run.pid).children(recursive=True)


def test_killed_run_goes_on_where_it_was_and_leaves_no_kernel(root, capsys):
    (root / "srmir_lib").rmdir()
    run, kernels = start_and_wait_for(root, "part.txt")
    assert Runner("lab").status(Runner("lab").plan(["01_make"]))[0].state == "running"
    run.kill()
    run.communicate()
    assert kernels and not psutil.wait_procs(kernels, timeout=20)[1], "the kernel outlived its runner"
    assert Runner("lab").status(Runner("lab").plan(["01_make"]))[0].state == "interrupted"
    assert (root / "outputs/lab/.01_make.work/.scratch/said/one").exists()
    (root / "wait").unlink()
    assert main(["run", "lab", "01"]) == 0
    assert (root / "outputs/lab/01_make/kept.txt").exists(), "finished parts of a killed run are kept"
    assert not (root / "outputs/lab/01_make/.scratch").exists(), "what a killed run alone has use for goes"
    record = json.loads((root / "outputs/lab/01_make/manifest.json").read_text())
    assert record["attempts"] == 2, "its seconds are not all that it took"
    assert not (root / "outputs/lab/01_make/.attempts.json").exists()

    assert main(["run", "lab", "01", "--set", "seed=1"]) == 0
    assert not (root / "outputs/lab/01_make/kept.txt").exists(), "parts made with other parameters are not"


def test_stop_signal_ends_the_kernel_too(root):
    (root / "srmir_lib").rmdir()
    run, kernels = start_and_wait_for(root, "part.txt")
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and error == "srmir: interrupted; the same command goes on from here\n"
    assert not psutil.wait_procs(kernels, timeout=20)[1]


def test_plain_papermill_runs_the_same_notebook_from_anywhere(root, tmp_path, monkeypatch):
    monkeypatch.delenv("JUPYTER_DATA_DIR")
    parameters = root / "params/lab/01_make.yaml"
    command = [
        sys.executable,
        "-m",
        "papermill",
        root / "notebooks/01_make.ipynb",
        tmp_path / "out.ipynb",
        "-f",
        parameters,
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((root / "outputs/lab/01_make/metrics.json").read_text()) == {"rate": 0.005}


def test_watch_says_where_it_is():
    stream = io.StringIO()
    with Watch("04_x", 36, Board(stream, every=0.1)) as watch:
        watch.cell_start(None, 11)
        watch.write("step 1\rstep 2\r\n\x1b[A")  # several bars at once move the cursor
        time.sleep(0.8)
    assert stream.getvalue().splitlines()[0] == "  04_x  cell 12/36  0:00  step 2"
    assert watch.seconds >= 0.8


def test_parameter_file_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match="gone.yaml: no such file"):
        load_values(tmp_path / "gone.yaml")
    assert yaml.safe_load("5e-6") == "5e-6", "YAML 1.1 still reads 5e-6 as text: the check above is needed"


# The reference run.


def test_bless_copies_words_and_numbers_without_this_machines_paths(finished, capsys):
    assert main(["bless", "lab"]) == 0
    reference = finished / "outputs/reference/lab"
    assert capsys.readouterr().out.splitlines()[-1] == str(reference)
    assert sorted(str(p.relative_to(reference)) for p in reference.rglob("*.*")) == [
        "01_make/01_make.ipynb",
        "01_make/manifest.json",
        "01_make/metrics.json",
        "02_use/02_use.ipynb",
        "02_use/manifest.json",
    ]
    assert not [p for p in reference.rglob("*.*") if str(finished) in p.read_text()]
    page = (finished / "RESULTS.md").read_text()
    assert "## lab: 01_make" in page and "| `rate` | 0.005 |" in page and "at commit None" in page
    (finished / "RESULTS.md").unlink()
    assert main(["bless"]) == 0, "without a preset only the page is written"
    assert (finished / "RESULTS.md").read_text() == page


def test_bless_refuses_an_unfinished_or_large_run(finished, capsys):
    assert main(["bless", "lab"]) == 0
    blessed = contents(finished / "outputs/reference/lab")
    write_notebook(finished / "notebooks/02_use.ipynb", [*USE, "1 + 1"])
    assert main(["bless", "lab"]) == 2
    assert "02_use is stale; only a finished run can be a reference" in capsys.readouterr().err
    write_notebook(finished / "notebooks/02_use.ipynb", USE)
    book = finished / "outputs/lab/02_use/02_use.ipynb"
    book.write_text(book.read_text() + " " * 1_000_000)
    assert main(["bless", "lab"]) == 2
    assert "02_use.ipynb" in capsys.readouterr().err
    assert contents(finished / "outputs/reference/lab") == blessed


def test_progress_bars_do_not_stay_in_an_executed_notebook(tmp_path):
    bars = "\n".join(f"one: {n:3d}%|█    | {n}/100 [00:0{n % 9}<00:09, 15.4it/s]" for n in range(0, 101, 5))
    both = f"{bars}\x1b[A\rtwo: 7it [00:01,  5.1it/s]\r                \r[lib] a warning: 5% is little\n{bars}\n"
    stderr = partial(nbformat.v4.new_output, "stream", name="stderr")
    outputs = [
        stderr(text=both),
        stderr(text=bars),
        stderr(text="        \r"),
        nbformat.v4.new_output("stream", name="stdout", text=bars),
    ]
    cell = nbformat.v4.new_code_cell("train()", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    clear_bars(tmp_path / "a.ipynb")
    left = nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[0].outputs
    assert [(o.name, o.text) for o in left] == [("stderr", "[lib] a warning: 5% is little"), ("stdout", bars)]
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    clear_bars(tmp_path / "cut.ipynb"), clear_bars(tmp_path / "none.ipynb")
    assert (tmp_path / "cut.ipynb").read_text() == '{"cells": [' and not (tmp_path / "none.ipynb").exists()


def shown_by(root: Path, cell: str) -> list:
    """What a cell at the end of the first notebook shows when `srmir run` has executed it."""
    write_notebook(root / "notebooks/01_make.ipynb", [*MAKE, cell])
    assert main(["run", "lab", "01"]) == 0
    return nbformat.read(root / "outputs/lab/01_make/01_make.ipynb", as_version=4).cells[-1].outputs


def test_what_a_cell_prints_stays_beside_what_it_shows(root):
    """nbclient's own joining moves all that a cell prints up to where it printed first, past its tables."""
    cell = "from IPython.display import Markdown, display\nprint('one', end=' ')\nprint('two', flush=True)\n"
    cell += "display(Markdown('a table'))\nprint('three')"
    shown = [output.get("text") or output.data["text/markdown"] for output in shown_by(root, cell)]
    assert shown == ["one two\n", "a table", "three\n"]


@pytest.mark.skipif(os.name != "posix", reason="sockets that are files")
def test_a_kernel_is_talked_to_through_files_that_do_not_stay(root):
    """A TCP port is free when it is looked for, and may be another program's when the kernel comes to take it."""
    look = "from ipykernel.connect import get_connection_file, get_connection_info\n"
    look += "print(get_connection_file(), get_connection_info(unpack=True)['transport'])"
    file, transport = shown_by(root, look)[0].text.split()
    assert transport == "ipc" and Path(file).name == "kernel.json" and not Path(file).parent.exists()


def test_elapsed_counts_what_ran_side_by_side_once():
    at = "2026-01-01T00:{:02d}:00+00:00".format
    assert elapsed([]) == 0
    assert elapsed([(at(0), 60.0), (at(2), 60.0)]) == 120, "the gap between two runs is nobody's time"
    assert elapsed([(at(0), 300.0), (at(1), 60.0), (at(4), 120.0)]) == 360


TOGETHER = [
    "# 1 · Together",
    COMMON + "num_processes: int = 1  # that train together\nbad: int = -1  # the one that fails",
    "import os\nfrom accelerate import PartialState\nfrom accelerate.utils import gather_object\n"
    "from srmir_lib.runner.stage import Stage\nstage = Stage('01_make', preset, output_dir)\n"
    "state = PartialState(cpu=True)\nassert state.process_index != bad, 'as asked'",
    "print('they are', gather_object([state.process_index]))\n"
    "stage.path(f'rank-{state.process_index}.txt').write_text(str(state.num_processes))",
    "import time\nwhile (stage.root / 'wait').exists():\n    time.sleep(0.05)",
    "stage.save_metrics({'processes': state.num_processes})",
    "## Check",
    "assert state.num_processes == num_processes",
]


@pytest.fixture
def together(root):
    write_notebook(root / "notebooks/01_make.ipynb", TOGETHER)
    (root / "params/lab/01_make.yaml").write_text("num_processes: 2\n")
    (root / "params/accelerate").mkdir()
    return root


def test_two_processes_execute_a_notebook_and_the_first_one_stays(together, capsys):
    assert main(["run", "lab", "01"]) == 0
    out = together / "outputs/lab/01_make"
    assert json.loads((out / "metrics.json").read_text()) == {"processes": 2}
    assert [path.name for path in out.glob("rank-*")] == ["rank-0.txt"], "the other wrote elsewhere"
    assert "they are [0, 1]" in (out / "01_make.ipynb").read_text()
    assert not list((together / "outputs/.cache").iterdir()), "nothing is left behind"
    made = json.loads((out / "manifest.json").read_text())
    assert made["parameters"]["num_processes"] == 2 and made["peak_memory_mb"] > 200
    assert main(["run", "lab", "01"]) == 0 and "01_make: skipped" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [0, 1])
def test_failure_of_any_process_is_named(together, capsys, bad):
    assert main(["run", "lab", "01", "--set", f"bad={bad}"]) == 1
    line = capsys.readouterr().err
    assert "01_make, cell 4, In [3]: AssertionError: as asked; see" in line
    kept = Path(line.rpartition("see ")[2].strip())
    assert kept.name == f"01_make-process-{bad}.ipynb" and "as asked" in kept.read_text()
    assert not (together / "outputs/lab/01_make").exists()


def test_what_a_killed_run_started_ends_with_it(together):
    (together / "srmir_lib").rmdir()
    run, below = start_and_wait_for(together, "rank-0.txt")
    assert len(below) >= 5, "torchrun, two processes and their kernels"
    run.kill()
    run.communicate()
    assert not psutil.wait_procs(below, timeout=30)[1]


@pytest.mark.parametrize(
    ("processes", "text", "message"),
    [
        (1, "distributed_type: FSDP\n", "no notebook here has num_processes above 1"),
        (2, "num_machines: 1\n", "has no distributed_type; `accelerate config` writes such files"),
        (2, "distributed_type: DEEPSPEED\n", "needs the package deepspeed; install it first"),
        (2, "distributed_type: MULTI_CPU\n", "distributed_type MULTI_CPU is none of MULTI_GPU, FSDP, DEEPSPEED"),
        (2, "distributed_type: FSDP\nnum_machines: 2\n", "num_machines 2; a notebook runs on one"),
        (2, "- a\n", "write one `name: value` a line, not a list"),
        (2, None, "no such file or directory"),
    ],
)
def test_configuration_that_nothing_follows_is_one_line(together, capsys, processes, text, message):
    file = together / "params/accelerate/own.yaml"
    if text:
        file.write_text(text)
    asked = ["run", "lab", "01", "--accelerate", str(file), "--set", f"num_processes={processes}"]
    assert main(asked) == 2
    line = capsys.readouterr().err
    assert message in line and "own.yaml" in line and line.count("\n") == 1
    assert main(["run", "accelerate"]) == 2 and "accelerate: unknown preset; there are lab" in capsys.readouterr().err


THREADS_FREE = """
import threading, psutil, torch
def work():
    torch.zeros(30 * 2**18)  # freed, it would make glibc keep all pieces of up to its 30 MB
    pieces = [torch.ones(13 * 2**18) for _ in range(12)]
    small = torch.ones(2**10)  # behind them, so that nothing can be given back from the end
    del pieces
    kept.append(small)
kept, before = [], psutil.Process().memory_info().rss
for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that keeps what threads free")
def test_what_a_kernels_threads_free_is_given_back():
    """Of 12 pieces of 13 MB nothing is left when they are freed."""
    told = os.environ | KERNEL_ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", THREADS_FREE], env=told, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40
