"""A stage finds its folders from anywhere, refuses what is missing, and shows live source."""

import json
import math
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from srmir_lib.errors import InputError
from srmir_lib.runner import stage as stage_module
from srmir_lib.runner.stage import Stage, find_root, show_source


def test_root_is_this_checkout_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SRMIR_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert find_root() == Path(__file__).resolve().parents[1]


def test_root_of_an_installed_package_is_found_above_the_caller(tmp_path, monkeypatch):
    monkeypatch.delenv("SRMIR_ROOT", raising=False)
    monkeypatch.setattr(stage_module, "__file__", str(tmp_path / "site-packages" / "srmir_lib" / "runner" / "stage.py"))
    (tmp_path / "clone" / "notebooks").mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "clone" / "notebooks")
    assert find_root() == tmp_path / "clone"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not inside the repository.*SRMIR_ROOT"):
        find_root()


def test_folders_with_and_without_output_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("SRMIR_ROOT", str(tmp_path))
    monkeypatch.setenv("MODELS", "kept/here")
    assert Stage("01_data", "lab").path("prompts") == tmp_path / "outputs/lab/01_data/prompts"
    work = Stage("01_data", "lab", "elsewhere/work")
    assert work.folder == tmp_path / "elsewhere/work" and work.folder.is_dir()
    assert work.resolve("$MODELS/x") == tmp_path / "kept/here/x"
    assert work.resolve("/absolute") == Path("/absolute")


def test_input_missing_names_the_command_that_makes_it(tmp_path):
    stage = Stage("02_shadow_reward_models", "lab", root=tmp_path)
    with pytest.raises(InputError, match=r"01_data/preferences: missing; run `srmir run lab 01` first"):
        stage.input("01_data", "preferences")
    folder = tmp_path / "outputs/lab/01_data/preferences"
    folder.mkdir(parents=True)
    assert stage.input("01_data", "preferences") == folder


@pytest.mark.parametrize("name", ["../x", "objectives/../../../x", "/x", "objectives/../.."])
def test_a_name_that_leads_out_of_the_stage_is_refused(tmp_path, name):
    """`objectives: {"../../x": …}` in a parameter file becomes such a name."""
    stage = Stage("03_margins", "lab", root=tmp_path)
    with pytest.raises(InputError, match=r"x?: leads out of .*outputs/lab/03_margins; give a plain name"):
        stage.path(name)
    with pytest.raises(InputError, match="leads out of"):
        stage.input("02_shadow_reward_models", f"../../{name}")
    with pytest.raises(InputError, match="leads out of"):
        Stage("03_margins", f"lab/../../{name}", root=tmp_path)
    assert stage.path("objectives/a") == tmp_path / "outputs/lab/03_margins/objectives/a"


def test_base_model_is_a_folder_a_hub_id_or_the_one_of_01(tmp_path):
    stage = Stage("02_shadow_reward_models", "lab", root=tmp_path)
    made = tmp_path / "outputs/lab/01_data/base_model"
    made.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    assert stage.base_model("") == str(made)
    assert stage.base_model("mine") == str(tmp_path / "mine")
    assert stage.base_model("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


def test_metrics_are_flat_finite_numbers(tmp_path):
    stage = Stage("04_grpo_linear", "lab", root=tmp_path)
    stage.save_metrics({"reward": 1, "kl": 0.25})
    assert json.loads(stage.path("metrics.json").read_text()) == {"reward": 1.0, "kl": 0.25}
    with pytest.raises(InputError, match="kl = nan"):
        stage.save_metrics({"kl": math.nan})
    assert json.loads(stage.path("metrics.json").read_text())["kl"] == 0.25


def test_figure_is_a_png_and_is_saved_reproducibly(tmp_path):
    from matplotlib.figure import Figure

    stage = Stage("01_data", "lab", root=tmp_path)
    for name in ("counts", "again"):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([1, 2])
        assert stage.save_figure(figure, name) is None
    first, second = (stage.path("figures") / f"{name}.png" for name in ("counts", "again"))
    assert first.read_bytes().startswith(b"\x89PNG") and first.read_bytes() == second.read_bytes()


def test_no_permission_to_write_is_one_line(tmp_path):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="outputs/lab/01_data: cannot write here .*; choose another output_dir"):
        Stage("01_data", "lab", root=tmp_path)


def test_show_source_is_the_live_source_and_survives_html_export():
    source = show_source(find_root)
    first, definition = str(source).splitlines()[:2]
    text = Path(stage_module.__file__).read_text().splitlines()
    line = int(first.rsplit(" ", 1)[1])
    assert (
        first.startswith("# srmir_lib/runner/stage.py, line ")
        and definition == text[line - 1] == "def find_root() -> Path:"
    )
    assert repr(source) == str(source)

    data = {"text/plain": repr(source), "text/markdown": source._repr_markdown_()}
    cell = nbformat.v4.new_code_cell("show_source(find_root)")
    cell.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=1)]
    html, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    inside = html.partition('<div style="font-family: monospace; font-size: 0.85em">')[2].partition("</div>\n</div>")[0]
    assert '<span class="nf">find_root</span>' in inside and "````" not in inside
