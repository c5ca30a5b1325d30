"""What is printed about blessed runs is what they measured."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from srmir_lib.conversations import redact
from srmir_lib.errors import InputError
from srmir_lib.runner.bless import LARGEST, PICTURES, _fit_to_keep, bless, results_page

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "outputs" / "reference"


def test_the_page_of_results_is_what_a_blessing_writes():
    assert (ROOT / "RESULTS.md").read_text() == results_page(REFERENCE), "run `srmir bless` to write RESULTS.md anew"


def test_every_reference_opens():
    broken = []
    for file in (*REFERENCE.rglob("*.ipynb"), *REFERENCE.rglob("*.json")):
        try:
            content = json.loads(file.read_text())
            if file.suffix == ".ipynb":
                nbformat.validate(content)
        except (json.JSONDecodeError, nbformat.ValidationError) as error:
            broken.append(f"{file}: {str(error).splitlines()[0]}")
    assert not broken, "\n".join(broken)


ABOUT = {"started": "2026-01-02T03:04:05+00:00", "git_commit": "c0ffee1234", "cpu": "A chip", "threads": 2, "cores": 4}
ABOUT |= {"seconds": 12.5, "peak_memory_mb": 800}


def blessed(reference: Path, preset: str, notebook: str, **files) -> None:
    folder = reference / preset / notebook
    folder.mkdir(parents=True)
    for name, value in ({"manifest": ABOUT | {"preset": preset, "notebook": notebook}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_the_page_of_results_by_hand(tmp_path):
    claim = {"claim": "up", "control": "base", "estimate": 0.5, "low": -0.25, "high": 1.0, "verdict": "open", "id": "x"}
    policies = {"base/utility": 0.5, "base/utility/sum": 1.0, "one|two/utility": 0.12345, "one|two/tokens": 7.0}
    blessed(tmp_path, "lab", "06_evaluation", metrics=policies, claims=[claim])
    blessed(
        tmp_path,
        "lab",
        "A6_over_seeds",
        metrics={"a": 1.0},
        claims=[claim | {"estimate": None, "world": "x", "seeds": [3, 5]}],
    )
    metrics = {"accuracy": 2 / 3, "accuracy_low": 0.5, "accuracy_high": 0.75, "b_low": -2.0, "c/d": 1e-5}
    blessed(tmp_path, "early", "01_data", metrics=metrics | {"c/d/low": 0.0, "c/d/high": 1.0})
    about = ", run on 2026-01-02 at commit c0ffee1 on A chip with 2 of 4 cores in 12 s and 800 MB."
    lab, rest = results_page(tmp_path).split("## lab: A6_over_seeds")
    assert lab.startswith("# Results\n") and "## lab: 06_evaluation\n\n[The notebook with its outputs](outputs/" in lab
    assert f"(outputs/reference/lab/06_evaluation/06_evaluation.ipynb){about}" in lab
    assert lab.partition(about)[2].splitlines()[2:] == [
        "| policy | utility (%) | tokens per answer |",
        "| --- | --- | --- |",
        "| base | 50.0 | – |",
        "| one\\|two | 12.3 | 7.0 |",
        "",
        "| claim | control | estimate | verdict |",
        "| --- | --- | --- | --- |",
        "| up | base | 0.5 [-0.25, 1] | open |",
        "",
    ]
    assert rest.splitlines()[:6] == [
        "",
        "",
        "No seeds are on record (`srmir seeds`), so no claim over seeds is shown.",
        "",
        "## early: 01_data",
        "",
    ]
    assert rest.splitlines()[8:] == [
        "| metric | value |",
        "| --- | --- |",
        "| `accuracy` | 0.6667 [0.5, 0.75] |",
        "| `b_low` | -2 |",
        "| `c/d` | 1e-05 [0, 1] |",
    ]
    (tmp_path / "seeds").mkdir()
    assert results_page(tmp_path).count("| up | x | 2 | base | – | open |") == 1, "with records the claims are shown"


def test_a_new_blessing_keeps_the_appendices_that_were_not_run(tmp_path):
    """Stages as the runner reports them; the folders are real."""
    states = {"01_data": "done", "A1_bayesian_rewards": "missing", "A5_cost": "done"}
    outputs, reference = tmp_path / "outputs" / "lab", tmp_path / "outputs" / "reference" / "lab"
    for folder, text in ((outputs, "{}"), (reference, '{"old": 1}')):
        for name in states:
            (folder / name).mkdir(parents=True)
            (folder / name / "metrics.json").write_text(text)
    runner = SimpleNamespace(
        root=tmp_path,
        outputs=outputs,
        preset="lab",
        select=lambda wanted=("01",), everything=False: [
            name for name in states if everything or name.startswith(tuple(wanted))
        ],
        plan=lambda names, check_inputs: [SimpleNamespace(name=name) for name in names],
        status=lambda tasks: [SimpleNamespace(name=task.name, state=states[task.name]) for task in tasks],
    )
    (reference / "objectives").mkdir()
    (reference / "objectives" / "one.json").write_text("{}")
    (outputs / "A5_cost" / "figures").mkdir()
    for name in ("dials.png", "cost.png"):
        (outputs / "A5_cost" / "figures" / name).write_bytes(b"png")
    assert bless(runner) == reference and (reference / "objectives" / "one.json").is_file(), "records are not remade"
    found = {name: (reference / name / "metrics.json").read_text() for name in states}
    assert found == {"01_data": "{}", "A1_bayesian_rewards": '{"old": 1}', "A5_cost": "{}"}
    assert [file.name for file in reference.glob("*/*.png")] == ["dials.png"], "what README shows, and nothing else"
    states["01_data"] = "stale"
    with pytest.raises(InputError, match="01_data is stale; only a finished run can be a reference"):
        bless(runner)
    assert (reference / "01_data" / "metrics.json").is_file(), "a refused blessing takes nothing away"
    (outputs / "A5_cost" / "metrics.json").write_text('{"newer": 2}')
    assert bless(runner, ["A5"]) == reference, "what is not named need not be done"
    found = {name: (reference / name / "metrics.json").read_text() for name in states}
    assert found == {"01_data": "{}", "A1_bayesian_rewards": '{"old": 1}', "A5_cost": '{"newer": 2}'}
    with pytest.raises(InputError, match="A1_bayesian_rewards is missing; only a finished run"):
        bless(runner, ["A1"])


def test_where_nothing_is_done_nothing_is_blessed(tmp_path):
    """A preset of appendices alone."""
    runner = SimpleNamespace(
        root=tmp_path,
        outputs=tmp_path / "outputs" / "real",
        preset="real",
        select=lambda everything=False: ["A8_real_pairs"] if everything else [],
        plan=lambda names, check_inputs: [SimpleNamespace(name=name) for name in names],
        status=lambda tasks: [SimpleNamespace(name=task.name, state="stale") for task in tasks],
    )
    with pytest.raises(InputError, match="real: nothing to bless; A8_real_pairs is stale"):
        bless(runner)
    assert not (tmp_path / "outputs").exists()


def test_reference_files_are_small_and_show_no_places():
    for file in REFERENCE.rglob("*"):
        if file.is_file():
            assert file.stat().st_size < LARGEST, f"{file} is too large to keep"
            if file.name in PICTURES:
                continue
            text = file.read_text(encoding="utf8")
            assert not re.search(r"/(home|root|tmp|work|Users)/", text), f"{file} shows a path of the machine it ran on"
            assert not re.search(r"\S … \[\d+ characters, redacted\]", text), f"{file} keeps the beginning of a text"
            assert file.suffix in (".ipynb", ".json"), f"{file}: no weights or data belong here"


def test_of_a_redacted_text_nothing_is_kept(tmp_path):
    shown = redact("a long text that nobody should read here", show_text=False)
    assert shown.startswith("a ▇▇▇▇") and _fit_to_keep(json.dumps(f"  y+  {shown}"), tmp_path) == (
        '"  y+  [40 characters, redacted]"'
    )
    short = json.dumps(["  x ", redact('a "b"', False), "end"], indent=1, ensure_ascii=False)
    assert json.loads(_fit_to_keep(short, tmp_path)) == ["  x ", "[5 characters, redacted]", "end"]
