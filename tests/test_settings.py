"""What a notebook is told: every setting of every notebook refuses what does not fit it, in one line, without torch."""

import ast
import subprocess
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest

from srmir_lib.cli import main
from srmir_lib.errors import InputError
from srmir_lib.runner.notebook import Notebook
from srmir_lib.settings.base import Settings, told

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = {path.stem: Notebook.load(path) for path in PATHS}


class Inner(Settings):
    size: int = told("how large", 3, gt=0)
    kind: Literal["a", "b"] = told("which", "a")


class Outer(Settings):
    rate: float = told("how fast", gt=0)
    names: list[str] = told("of whom", ["x"], min_length=1)
    inner: Inner = told("a group", Inner(size=5))


def test_a_group_holds_changes_of_its_own_default():
    assert Outer.checked({"rate": 1.0}).inner == Inner(size=5, kind="a")
    assert Outer.checked({"rate": 1.0, "inner": {"kind": "b"}}).inner == Inner(size=5, kind="b"), "not of its class's"
    assert Outer.of({"rate": 1.0, "unknown": 3}, rate=2.0).rate == 2.0
    assert Outer.checked({"rate": 1.0}).changed(rate=3.0).rate == 3.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "rate: not given; write a value"),
        ({"rate": "5e-6"}, "rate = '5e-6': it is text, and must be a number; write 5.0e-6"),
        ({"rate": "fast"}, "rate = 'fast': it must be a valid number"),
        ({"rate": 0}, "rate = 0: it must be greater than 0"),
        ({"rate": float("inf")}, "rate = inf: it must be a finite number"),
        ({"rate": 1.0, "names": []}, "names = []: it must have at least 1 item after validation, not 0"),
        ({"rate": 1.0, "inner": {"kind": "c"}}, "inner.kind = 'c': it must be one of 'a' or 'b'"),
        ({"rate": 1.0, "inner": {"sise": 1}}, "there is no setting inner.sise; there are size, kind"),
        ({"rate": 1.0, "inner": {"size": True}}, "inner.size = True: it must be a valid integer"),
        ({"rate": 1.0, "inner": 3}, "inner = 3: it must be a valid dictionary or instance of Inner"),
        ({"rate": -1.0, "rat": 1}, "rate = -1.0: it must be greater than 0; there is no setting rat; there are"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_may_be(values, message):
    with pytest.raises(InputError) as refused:
        Outer.checked(values)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="^file.yaml: "):
        Outer.checked(values, "file.yaml")


def test_the_table_shows_groups_marks_changes_and_escapes():
    shown = Outer.checked({"rate": 1.0, "inner": {"size": 4}})
    assert [row["name"] for row in shown.groups()] == ["inner.size", "inner.kind"]
    assert repr(shown) == "* inner.size = 4  # how large\n  inner.kind = 'a'  # which"
    changed, folded = shown._repr_html_().split("<details>")
    assert "how large" in changed and "font-weight: bold" in changed and "inner.kind" not in changed
    assert "<summary>1 setting as by default</summary>" in folded and "inner.kind" in folded and "bold" not in folded
    assert "<table" not in Outer.checked({"rate": 1.0})._repr_html_().split("<details>")[0], "nothing is changed"


def leaves(model: type[Settings], path: tuple = ()):
    """(path, field) of every setting, those of groups included."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from leaves(kind, (*path, name))
        else:
            yield (*path, name), field


def wrong_values(field) -> list:
    """Values that do not fit: another type, out of range, no choice, empty where it must not be."""
    kind, limits = field.annotation, list(field.metadata)
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        limits += more
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    origin = get_origin(kind) or kind
    wrong = [object()]
    if origin is Literal:
        wrong += ["no such choice", 3.5]
    elif origin is bool:
        wrong += ["yes", 1]
    elif origin is int:
        wrong += ["3", 2.5, True, float("nan")]
    elif origin is float:
        wrong += ["6e-3", float("nan"), float("inf"), [1.0]]
    elif origin is str:
        wrong += [3, ["a"]]
    elif origin is list:
        wrong += [3, "a", {"a": 1}]
    elif origin is dict:
        wrong += [3, "a", ["a"]]
    for limit in limits:
        bounds = {name: getattr(limit, name) for name in ("gt", "ge", "lt", "le") if hasattr(limit, name)}
        outside = {"gt": 0, "ge": -1, "lt": 0, "le": 1}  # added to a bound: the nearest value that is refused
        wrong += [bound + outside[name] for name, bound in bounds.items()]
        if hasattr(limit, "min_length"):
            wrong.append("" if origin is str else origin())
    return wrong


def nested(path: tuple, value: object) -> dict:
    first, *rest = path
    return {first: nested(tuple(rest), value) if rest else value}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_wrong_value_of_any_setting_is_refused_by_name(name):
    notebook = NOTEBOOKS[name]
    tried = 0
    for path, field in leaves(notebook.model):
        for value in wrong_values(field):
            with pytest.raises(InputError) as refused:
                notebook.parameters(nested(path, value), "here")
            assert ".".join(path) in str(refused.value) and "\n" not in str(refused.value), (path, value)
            tried += 1
    assert tried > 2 * len(notebook.model.model_fields)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_parameters_cell_names_what_its_settings_know_and_the_next_cell_checks_it(name):
    notebook = NOTEBOOKS[name]
    first, second = notebook.code_cells()[:2]
    assert set(notebook.defaults) == set(notebook.model.model_fields)
    groups = [key for key, field in notebook.model.model_fields.items() if _is_group(field)]
    assert all(notebook.defaults[key] == {} for key in groups), "defaults stand in the settings model, and there only"
    written = [node.target.id for node in ast.parse(first).body]
    assert len(written) <= 18, f"{len(written)} parameters: what a reader changes; the rest belongs to a group"
    *imports, check, shown = ast.parse(second).body
    assert all(isinstance(node, ast.ImportFrom) and node.module.startswith("srmir_lib.settings.") for node in imports)
    assert (
        ast.unparse(check) == f"settings = {notebook.model.__name__}.of(globals())" and ast.unparse(shown) == "settings"
    )
    for path, field in leaves(notebook.model):
        assert field.description, f"{'.'.join(path)}: says not what it means"
    for key, field in notebook.model.model_fields.items():
        assert _is_group(field) or field.is_required(), f"{key}: its default stands in the parameters cell"


def _is_group(field) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Settings)


def test_the_command_line_refuses_within_three_seconds_and_without_torch():
    code = (
        "import sys, time; start = time.time()\n"
        "from srmir_lib.cli import main\n"
        "codes = [main(['run', 'lab', number, '--set', text]) for number, text in ("
        "('04', 'training.beta=-1'), ('04', 'variants=[nope]'), ('04', 'device=gpu'), ('05', 'alarm.prompts=0'))]\n"
        "assert codes == [2] * 4, codes\n"
        "assert 'torch' not in sys.modules and time.time() - start < 3, time.time() - start\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 4 and "'own_calibrated'" in done.stderr, "the choices are named"


def test_empty_text_is_what_nothing_behind_the_equals_sign_means(monkeypatch):
    seen = {}
    monkeypatch.setattr("srmir_lib.cli.Runner.plan", lambda self, names, settings: seen.update(settings) or [])
    monkeypatch.setattr("srmir_lib.cli._report", lambda options: None)
    assert main(["run", "lab", "04", "--set", "start=", "--set", "training.beta=.05"]) == 0
    assert seen == {"start": "", "training.beta": 0.05}
