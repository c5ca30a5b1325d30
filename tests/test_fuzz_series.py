"""Damaged outputs, references, parameter files and notebooks: `srmir` does its work or says in one line what is wrong.

What is damaged, and how, is drawn from the number of the draw, which a failure names.
"""

import shutil
from pathlib import Path
from random import Random

import nbformat
import pytest
from damage import contents, damage, tried

from srmir_lib.artifacts import write_json, write_jsonl
from srmir_lib.cli import main
from srmir_lib.runner import workers

PARAMETERS = 'preset: str = "lab"\noutput_dir: str = ""\nseed: int = 0\nrate: float = 0.5\nnames: list[str] = []'
STAGE = "from srmir_lib.runner.stage import Stage\nstage = Stage('{}', preset, output_dir)\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A repository of two notebooks with all that `srmir` leaves: outputs, a reference, records of a seed."""
    root = tmp_path_factory.mktemp("root") / "good"
    for name, code in {
        "01_data": "stage.save_metrics({'rate': rate})",
        "06_evaluation": "numbers = stage.input('01_data', 'numbers')",
    }.items():
        cells = [nbformat.v4.new_markdown_cell("# Words", id="a")]
        parts = PARAMETERS, STAGE.format(name) + code
        cells += [nbformat.v4.new_code_cell(part, id=f"b{n}") for n, part in enumerate(parts)]
        cells[1].metadata["tags"] = ["parameters"]
        for folder in (root / "notebooks", root / "params/lab"):
            folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), root / f"notebooks/{name}.ipynb")
        (root / f"params/lab/{name}.yaml").write_text(f"# {name}\npreset: lab\nrate: 0.25\nnames: [a, b]\n")
    (root / "pyproject.toml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRMIR_ROOT", str(root))
        patch.setattr(workers, "execute", executed)
        assert [main([*command.split()]) for command in ("run lab", "seeds lab --seeds 2", "bless lab")] == [0] * 3
    (root / "outputs/lab/01_data/notes.txt").write_text("a person's notes")
    return root


def executed(notebook: Path, target: Path, parameters: dict, root: Path, *_) -> tuple[float, float]:
    """In place of a kernel: what the notebook would leave."""
    book, folder = nbformat.read(notebook, 4), target.parent
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cell = nbformat.v4.new_code_cell(given, id="given", metadata={"tags": ["injected-parameters"]})
    places = [n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    book.cells.insert(places[0] + 1, cell)
    nbformat.write(book, target)
    write_json(folder / "metrics.json", {"base/goodness": 0.5, "base/goodness_low": 0.25, "base/goodness_high": 1.0})
    write_json(folder / "numbers/data.json", {"x": 1})
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures/forest.png").write_bytes(b"\x89PNG")
    if folder.name == ".06_evaluation.work":
        write_json(folder / "results.json", {"note": "one", "policies": {"base": {"goodness": 0.5, "tokens": 9.0}}})
        claim = {"id": "x", "claim": "it helps", "source": "a", "measure": "b", "treatment": "c", "control": "base"}
        claim |= {"estimate": 0.25, "low": 0.1, "high": 0.4, "this_run": "yes", "verdict": "inconclusive"}
        write_json(folder / "claims.json", [claim])
        answers = [{"policy": "base", "response": "no", "rung": "full"}]
        write_jsonl(folder / "samples.jsonl", [{"prompt": "a", "about": "b", "answers": answers}])
    return 1.0, 50.0


OF_SERIES = (
    "status lab",
    "report lab",
    "run lab",
    "run lab 01",
    "run lab 06 --set rate=0.5",
    "bless lab",
    "bless",
    "seeds lab --seeds 2",
)
PARTS = ("outputs/lab", "outputs/lab", "outputs/reference", "outputs/seeds", "params", "notebooks")


FOUND = (67, 95, 120, 136, 181, 216)
"""Draws that a run of many hundreds found."""


@pytest.mark.parametrize("draw", (*range(34), *FOUND))
def test_a_damaged_series_is_one_line_and_stays_as_it_is(draw, root, tmp_path, monkeypatch, capsys):
    rng = Random(f"series {draw}")
    bad = Path(shutil.copytree(root, tmp_path / "root", symlinks=True))
    part, command = rng.choice(PARTS), rng.choice(OF_SERIES)
    done = damage(bad / part, rng)
    monkeypatch.setenv("SRMIR_ROOT", str(bad))
    monkeypatch.setattr(workers, "execute", executed)
    before = contents(bad)
    code, said = tried(command.split(), f"draw {draw}: {part}: {done}; srmir {command}", capsys)
    after = contents(bad)
    written = {"report": "outputs/lab/report", "bless": "outputs/reference/lab", "status": "nothing"}
    if (own := written.get(command.split()[0])) and (own in ("nothing", "outputs/lab/report") or code):
        kept = {name for name in before if not name.startswith(own)}
        assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}, said
    for name in before:
        made = name == "RESULTS.md" or (name.startswith("outputs") and "notes.txt" not in name)
        if isinstance(before[name], bytes) and not made:
            assert before[name] in after.values(), f"{said}: {name} is lost"
    if code:
        message = said.rpartition("srmir: ")[2]
        assert any(place in message for place in ("outputs/", "params/", "notebooks/", "lab")), said
