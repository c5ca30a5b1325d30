"""What is printed about blessed runs is what they measured."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from srmir_lib.conversations import redact
from srmir_lib.errors import InputError
from srmir_lib.runner.bless import HEADINGS, LARGEST, _fit_to_keep, bless, claims_markdown, results_markdown

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "outputs" / "reference"


def test_the_table_of_claims_by_hand(tmp_path):
    folder = tmp_path / "lab" / "A6_over_seeds"
    folder.mkdir(parents=True)
    row = {"id": "a", "claim": "up", "world": "x", "estimate": 0.5, "low": -0.25, "high": 1.0, "overall": "differs"}
    other = row | {"id": "b", "claim": "down", "world": "y", "estimate": None, "overall": "not measured"}
    (folder / "claims.json").write_text(json.dumps([row, other]))
    assert claims_markdown(tmp_path, "lab").splitlines() == [
        "| claim | x | y | verdict |",
        "|---|---|---|---|",
        "| up | +0.500 [-0.250, +1.000] | - | differs |",
        "| down | - | - | not measured |",
    ]


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


def test_the_table_by_hand(tmp_path):
    folder = tmp_path / "lab" / "06_evaluation"
    folder.mkdir(parents=True)
    one = {f"base/{name}": 0.5 for name in HEADINGS}
    (folder / "metrics.json").write_text(json.dumps(one | {f"linear, own raw/{name}": 0.12345 for name in HEADINGS}))
    lines = results_markdown(tmp_path, "lab").splitlines()
    assert lines[0].startswith("| policy | attacks, plain | wrapped |")
    assert lines[2] == "| base |" + " 0.500 |" * 7 and lines[3] == "| linear, own raw |" + " 0.123 |" * 7


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
        select=lambda everything=False: list(states) if everything else ["01_data"],
        plan=lambda names, check_inputs: [SimpleNamespace(name=name) for name in names],
        status=lambda tasks: [SimpleNamespace(name=task.name, state=states[task.name]) for task in tasks],
    )
    (reference / "objectives").mkdir()
    (reference / "objectives" / "one.json").write_text("{}")
    assert bless(runner) == reference and (reference / "objectives" / "one.json").is_file(), "records are not remade"
    found = {name: (reference / name / "metrics.json").read_text() for name in states}
    assert found == {"01_data": "{}", "A1_bayesian_rewards": '{"old": 1}', "A5_cost": "{}"}
    states["01_data"] = "stale"
    with pytest.raises(InputError, match="01_data is stale; only a finished run can be a reference"):
        bless(runner)
    assert (reference / "01_data" / "metrics.json").is_file(), "a refused blessing takes nothing away"


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


def test_a_missing_reference_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        results_markdown(tmp_path, "lab")


def test_reference_files_are_small_and_show_no_places():
    for file in REFERENCE.rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf8")
            assert len(text.encode()) < LARGEST, f"{file} is too large to keep"
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
