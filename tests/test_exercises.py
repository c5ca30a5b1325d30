"""Exercises in code: the folded answer is right, the stub is not done yet, the first idea is told what it got wrong."""

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from srmir_lib.errors import InputError
from srmir_lib.evaluation.measures import HELPFULNESS
from srmir_lib.exercises import EXERCISES, check_exercise
from srmir_lib.papers.grpo import group_advantages
from srmir_lib.papers.legend import legend_margin, scale_margins

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = (
    "00_tour",
    "01_data",
    "02_shadow_reward_models",
    "03_margins",
    "04_grpo_linear",
    "05_grpo_categorized",
    "06_evaluation",
    "A0_baselines",
    "A1_bayesian_rewards",
    "A2_representation_reranking",
    "A3_hardness",
    "A6_over_seeds",
    "A7_other_reward_models",
)
CHECKED = re.compile(r'^check_exercise\("([^"]+)", (\w+)\)$', flags=re.MULTILINE)


def cells_of(notebook: str) -> list:
    return nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4).cells


def coded(notebook: str) -> dict[str, tuple[str, str, str]]:
    """Name of each exercise in code -> (stub, name of the function, the code of the folded answer)."""
    found, cells = {}, cells_of(notebook)
    for place, cell in enumerate(cells):
        for name, function in CHECKED.findall(cell.source) if cell.cell_type == "code" else ():
            answer = cells[place + 1].source
            assert answer.startswith("<details><summary>Answer</summary>"), f"{name}: the answer comes next, folded"
            (code,) = re.findall(r"^```python\n(.*?)^```", answer, flags=re.MULTILINE | re.DOTALL)
            found[name] = cell.source, function, code
    return found


CODED = {name: (notebook, *parts) for notebook in NOTEBOOKS for name, parts in coded(notebook).items()}


def imported(notebook: str, code: str) -> dict:
    """What the notebook's own import lines give to the names that `code` uses."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    space: dict = {}
    for cell in cells_of(notebook):
        for node in ast.parse(cell.source).body if cell.cell_type == "code" else ():
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if (alias.asname or alias.name) in used:
                    one = type(node)(**{**{field: getattr(node, field) for field in node._fields}, "names": [alias]})
                    exec(ast.unparse(one), space)
    return space


def balanced_over_all_rows(rows):
    worth = [row["goodness"] if row["kind"] == "harmful" else HELPFULNESS[row["rung"]] for row in rows]
    return sum(worth) / len(worth)


def votes_apart(readings, needed):
    parts = [[one[at] for one in readings if one] for at in (0, 1)]
    best = [max(part, key=part.count, default=None) for part in parts]
    return tuple(best) if all(part.count(one) >= needed for part, one in zip(parts, best, strict=True)) else None


WRONG = {
    "00.1": lambda rewards: (rewards - rewards.mean()) / rewards.std(),  # 0 / 0
    "01.1": votes_apart,
    "02.1": lambda chosen, rejected, margins: (1 + (rejected + margins - chosen).exp()).log().mean(),  # infinite
    "03.1": lambda chosen, rejected, safe, harmful: scale_margins(
        legend_margin(chosen, rejected, torch.nn.functional.normalize(safe - harmful).mean(0)), "unit", "clip"
    ),  # each difference is brought to unit length before the mean
    "04.1": lambda ratio, advantage, epsilon: ratio.clamp(1 - epsilon, 1 + epsilon) * advantage,
    "05.1": lambda scores, p, least: scores[range(len(scores)), torch.where(p.amax(1) < least, -1, p.argmax(1))],
    "06.1": balanced_over_all_rows,
    "A0.1": lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
        -(beta * (chosen - ref_chosen - rejected + ref_rejected)).sigmoid().log().mean()  # the log of 0
    ),
    "A1.1": lambda q, mask, gamma: q - gamma * torch.cat([q[:, 1:], torch.zeros(len(q), 1)], dim=1),
    "A2.1": lambda gap, sure: -(sure * gap.sigmoid().log() + (1 - sure) * (1 - gap.sigmoid()).log()).mean(),  # log 0
    "A3.1": lambda rewards, size, alpha: group_advantages(alpha.repeat_interleave(size) * rewards, size),  # undone
    "A6.1": lambda p_values: [min(1.0, len(p_values) * p) for p in p_values],  # Bonferroni
    "A7.1": lambda rewards, size, scale: (
        (rewards - rewards.mean()) / (rewards.std() if scale == "group" else 1)  # of all, not of the group
    ),
}
"""Name -> what a reader may well write first."""


@pytest.mark.parametrize("name", CODED)
def test_the_folded_answer_is_right(name, capsys):
    notebook, _, function, code = CODED[name]
    space = imported(notebook, code)
    exec(code, space)
    check_exercise(name, space[function])
    assert capsys.readouterr().out == f"{name}: right\n"


@pytest.mark.parametrize("name", CODED)
def test_the_stub_is_not_done_yet(name, capsys):
    exec(CODED[name][1], {})
    assert capsys.readouterr().out == f"{name}: not done yet\n"


@pytest.mark.parametrize("name", CODED)
def test_the_first_idea_is_told_what_was_wanted(name, capsys):
    check_exercise(name, WRONG[name])
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(name)}: for .+ you return .+, wanted .+\n", said), said


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_three_exercises_one_at_least_in_code(notebook):
    """A cell that is the reader's is tagged, so that no result hangs on it; and it touches no file of the stage."""
    cells = cells_of(notebook)
    words = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.findall(r"^\*\*(\d)\.\*\*", words, flags=re.MULTILINE) == ["1", "2", "3"]
    assert words.count("<summary>Answer</summary>") == 3 and coded(notebook)
    number = notebook.split("_")[0]
    assert set(coded(notebook)) == {name for name in EXERCISES if name.split(".")[0] == number}
    for cell in cells:
        tagged = "exercise" in cell.metadata.get("tags", [])
        assert tagged == bool(cell.cell_type == "code" and CHECKED.search(cell.source))
        assert not (tagged and "stage" in cell.source)


def said_of(function, capsys, name: str = "A6.1") -> str:
    check_exercise(name, function)
    return capsys.readouterr().out


def test_what_a_line_says(capsys):
    assert said_of(lambda p_values: p_values, capsys) == (
        "A6.1: for <lambda>([0.2, 0.001, 0.01]) you return [0.2, 0.001, 0.01], wanted [0.2, 0.003, 0.02]\n"
    )
    assert said_of(lambda p_values: p_values + 1, capsys) == (
        'A6.1: your function raised TypeError: can only concatenate list (not "int") to list, '
        "called as <lambda>([0.2, 0.001, 0.01])\n"
    )
    assert said_of(None, capsys).startswith("A6.1: your function raised TypeError: 'NoneType' object is not callable")
    for given in (None, "0.2", [0.2], {"a": 1}, np.nan, [[0.2, 0.003, 0.02]], torch.Tensor, "x" * 5000):
        line = said_of(lambda _, given=given: given, capsys)
        assert "wanted [0.2, 0.003, 0.02]" in line or "raised TypeError" in line
        assert line.count("\n") == 1 and len(line) < 400


def test_arrays_tensors_and_tuples_are_as_good_as_lists_and_inputs_may_be_changed(capsys):
    right = EXERCISES["A6.1"].right
    for kind in (tuple, np.array, lambda values: torch.tensor(values, requires_grad=True)):
        assert said_of(lambda p_values, kind=kind: kind(right(p_values)), capsys) == "A6.1: right\n"

    def in_place(rewards):
        rewards -= rewards.mean()
        return rewards.div_(rewards.std() + 1e-4)

    assert said_of(in_place, capsys, "00.1") == "00.1: right\n"


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"^exercise: '9\.9' is none of 00\.1, 01\.1, .*A7\.1$"):
        check_exercise("9.9", len)
