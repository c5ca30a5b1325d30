"""The notebooks keep the house style: parameters first, prose around short cells, checks that can fail, no outputs."""

import ast
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

from srmir_lib.evaluation.pictures import APPENDICES, STATIONS
from srmir_lib.runner.notebook import Notebook, load_values
from srmir_lib.runner.series import ACCELERATE, Runner
from srmir_lib.runner.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted(ROOT.glob("notebooks/*.ipynb"))
SHORT = ("02_shadow_reward_models", "03_margins")
SAME_IN_ALL = ["preset", "output_dir", "seed"]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path) -> list:
    return nbformat.read(path, as_version=4).cells


def code(cells: list) -> list[str]:
    return [cell.source for cell in cells if cell.cell_type == "code"]


def section(cells: list, title: str) -> list:
    """Cells from the heading `title` up to the next heading of that level."""
    found, inside = [], False
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            inside = cell.source.startswith(f"## {title}")
        found += [cell] if inside else []
    return found


def test_stored_without_outputs_and_with_stable_ids(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5) and book.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    stored = [cell.id for cell in book.cells if cell.get("outputs") or cell.get("execution_count")]
    assert stored == [], "strip outputs: .venv/bin/nbstripout --keep-id notebooks/*.ipynb"


def test_parameters_come_first_are_literals_and_have_a_comment_each(path, cells):
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert "parameters" in first.metadata.get("tags", []), "the first code cell is tagged `parameters`"
    notebook = Notebook.load(path)
    assert list(notebook.defaults)[:3] == SAME_IN_ALL
    lines = first.source.splitlines()
    for written in ast.parse(first.source).body:
        commented = any(re.search("  # ...", line) for line in lines[written.lineno - 1 : written.end_lineno])
        assert commented, f"`{lines[written.lineno - 1]}` has no comment"
    assert notebook.parameters({}, "defaults")


def test_the_stage_is_made_once_under_the_notebooks_own_name(path, cells):
    assert re.findall(r"stage = Stage\((.*)\)", "\n".join(code(cells))) == [f'"{path.stem}", preset, output_dir']
    for values in ({}, {"base_model": "some/model"}):
        notebook = Notebook.load(path)
        own = {key: value for key, value in values.items() if key in notebook.defaults}
        assert all(isinstance(name, str) for name, _ in notebook.reads(notebook.parameters(own, "test")))


def test_size_and_balance(path, cells):
    sizes = [len(source.splitlines()) for source in code(cells)]
    ratio = (len(cells) - len(sizes)) / len(sizes)
    assert len(cells) <= (36 if path.stem in SHORT else 45)
    assert max(sizes[1:]) <= 25 and median(sizes) <= 10, "the parameters cell alone may be longer"
    assert 1.2 <= ratio <= 1.8, f"{ratio:.2f} markdown cells per code cell"


def test_head_says_what_it_reads_writes_needs_and_takes(path, cells):
    head = cells[0].source
    number = path.stem.split("_")[0].removeprefix("0")
    assert re.match(rf"# {number} · ", head), f"title: # {number} · ..."
    assert "\n> " in head and "| Reads | Writes | Needs | Takes |" in head
    assert any("**You will**" in c.source for c in cells) and any("depart from the paper" in c.source for c in cells)


def test_the_series_shows_its_way_with_the_present_station_lit(path, cells):
    number = path.stem.split("_")[0]
    shown = re.findall(r"^pictures\.pipeline\((.*)\);$", "\n".join(code(cells)), re.MULTILINE)
    assert shown == ([f'"{number}"'] if number in [*STATIONS, *APPENDICES] else []), (
        "one picture, of this notebook's own station"
    )
    for above in cells if shown else ():
        if "pictures.pipeline(" in above.source:
            break
        assert not re.search("^## ", above.source, re.MULTILINE), "the picture comes before the first section"


def test_prose_holds_no_typed_results(cells):
    seen = section(cells, "What we see")
    assert seen, "a section `## What we see`"
    words = "\n".join(cell.source for cell in seen if cell.cell_type == "markdown")
    words = re.sub(r"\$[^$]*\$|`[^`]*`", "", words)  # formulas and names are not results
    assert re.findall(r"\d+\.\d+|\d+ ?%", words) == [], "print results from a cell, do not type them"


def test_check_cell_can_fail(cells):
    checks = [ast.parse(source) for source in code(section(cells, "Check"))]
    asserts = [node.test for tree in checks for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert asserts and not any(isinstance(test, ast.Constant | ast.Tuple) for test in asserts)


def test_three_exercises_with_folded_answers(cells):
    text = "\n".join(cell.source for cell in section(cells, "Exercises"))
    folded = text.count("<summary>Answer</summary>"), text.count("<summary>Hint</summary>")
    assert folded[0] == 3 and text.count("<details>") == text.count("</details>") == sum(folded)
    assert section(cells, "Next"), "a section `## Next`"


def test_no_classes_no_plumbing(cells):
    for source in code(cells):
        tree = ast.parse(source)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)], source
        assert "pip install" not in source and "sys.path" not in source


def presets_with(*names: str) -> list[str]:
    folders = [folder for folder in sorted(ROOT.glob("params/*")) if folder.is_dir() and folder.name != ACCELERATE]
    return [folder.name for folder in folders if all((folder / f"{name}.yaml").is_file() for name in names)]


WATCHED = {"alarm", "refresh", "signal_prompts", "trials"}
"""Parameters of 05 alone: what is watched, what the variant refreshed is told, and what is trained besides."""


@pytest.mark.parametrize("preset", presets_with("04_grpo_linear", "05_grpo_categorized"))
def test_linear_and_categorized_differ_by_one_parameter(preset):
    linear, categorized = (
        Notebook.load(ROOT / f"notebooks/{name}.ipynb").parameters(
            load_values(ROOT / f"params/{preset}/{name}.yaml"), name
        )
        for name in ("04_grpo_linear", "05_grpo_categorized")
    )
    differing = {key for key in linear.keys() | categorized.keys() if linear.get(key) != categorized.get(key)}
    assert differing - WATCHED == {"variants"}


STRATEGIES = ("linear", "categorized", "soft")


def is_builder(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "reward_of"


def test_linear_and_categorized_differ_by_one_call():
    books = [nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4) for name in ("04_grpo_linear", "05_grpo_categorized")]
    parameters = [code(book.cells)[0].splitlines() for book in books]
    shared = [[line for line in lines if line.split(":")[0] not in WATCHED] for lines in parameters]
    assert [a.split(":")[0] for a, b in zip(*shared, strict=True) if a != b] == ["variants"]
    training = [next(source for source in code(book.cells) if "train_grpo(" in source) for book in books]
    rest = [[ast.unparse(node) for node in ast.parse(source).body if not is_builder(node)] for source in training]
    strategies = []
    for book in books:
        (builder,) = (node for source in code(book.cells) for node in ast.parse(source).body if is_builder(node))
        strategies.append({n.value for n in ast.walk(builder) if getattr(n, "value", 0) in STRATEGIES})
    assert strategies == [{"linear"}, {"categorized", "soft"}]
    assert rest[0] == rest[1], "around the one call that builds the reward, both train in the same way"


def test_a_notebook_takes_what_it_needs_from_about_a_dozen_modules(cells):
    trees = [ast.walk(ast.parse(source)) for source in code(cells)]
    modules = {node.module for tree in trees for node in tree if isinstance(node, ast.ImportFrom)}
    modules -= {"srmir_lib.exercises"}  # the reader's, not the notebook's
    own = sorted(name for name in modules if name.split(".")[0] == "srmir_lib")
    assert len(own) <= 14, f"{len(own)} modules of the library; move work into functions: {', '.join(own)}"


NAMES = [path.stem for path in PATHS]
METHODS = {name for name, value in vars(Stage).items() if callable(value) and not name.startswith("_")}
READS = {"input", "dataset", "rows"}
SHARED = "outputs/.cache"
"""Below `outputs` and of no stage: base models of the lab, by the hash of what made them."""


def parts(text: str) -> set[str]:
    """The parts of a path; none of what holds a space: that is prose."""
    return set() if " " in text else set(text.split("/"))


def paths_by_hand(source: str) -> list[str]:
    """What a cell does to reach a stage's files but through `stage.input`, `dataset`, `rows` and `base_model`.

    The parent of an input is an input; a name of a notebook may stand in a list or mapping that is handed to them.
    """
    tree = ast.parse(source)
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def called(node: ast.AST) -> str:
        """The method of `stage` that a node calls, if it does."""
        method = node.func if isinstance(node, ast.Call) else None
        return method.attr if isinstance(method, ast.Attribute) and ast.unparse(method.value) == "stage" else ""

    def is_wrong(node: ast.AST) -> bool:
        parent = above.get(node)
        match node:
            case ast.Name(id="stage", ctx=ast.Load()):
                return not (isinstance(parent, ast.Attribute) and parent.attr in METHODS)
            case ast.Attribute(attr="parent" | "parents", value=value):
                return any(called(inner) in ("path", "resolve") for inner in ast.walk(value))
            case ast.Call() if called(node) == "resolve":
                return not all(isinstance(given, ast.Name) or ast.unparse(given) == repr(SHARED) for given in node.args)
            case ast.Constant(value=str(text)) if parts(text) & {"outputs", ".."}:
                return called(parent) != "resolve"
            case ast.Constant(value=str(text)) if parts(text) & set(NAMES):
                collected = isinstance(parent, ast.Dict | ast.List | ast.Tuple)
                named = isinstance(parent, ast.Call) and ast.unparse(parent.func) == "Stage"
                return text not in NAMES or not (collected or named or called(parent) in READS)
        return False

    return [ast.unparse(above.get(node, node)) for node in ast.walk(tree) if is_wrong(node)]


def test_what_other_stages_wrote_is_read_through_stage_input(cells):
    """Or the runner would not know that they must come before."""
    for source in code(cells)[1:]:  # the parameters may name what they like
        assert paths_by_hand(source) == [], "read it with stage.input, stage.dataset or stage.rows"


@pytest.mark.parametrize(
    "cell",
    [
        "pairs = load_dataset(stage.root / 'outputs' / preset / '01_data' / 'preferences')",
        "rows = read_jsonl(stage.outputs / step)",
        "rows = read_jsonl(stage.folder.parent / step / 'history.jsonl')",
        "rows = read_jsonl(stage.path('history.jsonl').parent.parent / step / 'history.jsonl')",
        "rows = read_jsonl(stage.resolve('outputs/lab/04_grpo_linear/history.jsonl'))",
        "rows = read_jsonl(stage.resolve(f'outputs/{preset}') / step)",
        "rows = read_jsonl(Path('outputs', preset, step))",
        "text = open(f'outputs/{preset}/{step}/metrics.json').read()",
        "text = open('../lab/notes.txt').read()",
        "world = read_json(Path(output_dir) / '01_data' / 'world.json')",
        "world = read_json(Path(output_dir, '01_data', 'world.json'))",
        "world = read_json(output_dir + '/01_data/world.json')",
        "world = read_json(f'{output_dir}/01_data/world.json')",
        "before = '04_grpo_linear'",
        "world = read_world(stage)",
        "here = stage; world = read_json(here.root / step)",
    ],
)
def test_a_path_by_hand_to_another_stage_is_found(cell):
    assert paths_by_hand(cell)


@pytest.mark.parametrize(
    "cell",
    [
        "stage = Stage('01_data', preset, output_dir)",
        "models = cached_base_model(world, stage.resolve('outputs/.cache'), steps)",
        "data = stage.dataset('01_data', 'preferences')",
        "rows, base = stage.rows(reward_models, 'history.jsonl'), stage.base_model(base_model)",
        "steps = {'linear': '04_grpo_linear'}; found = stage.input(steps['linear'], 'policy').parent.glob('policy*')",
        "kept = stage.resolve(records) if records else stage.path('records')",
        "print('nothing is on record in outputs/reference, run 04_grpo_linear first')",
    ],
)
def test_what_notebooks_do_to_reach_files_is_in_order(cell):
    assert paths_by_hand(cell) == []


def test_06_reads_the_base_model_of_01_only_where_it_is_its_own():
    notebook = Notebook.load(ROOT / "notebooks/06_evaluation.ipynb")
    own = ("01_data", "base_model")
    assert own in notebook.reads(notebook.parameters({}, "test"))
    assert own not in notebook.reads(notebook.parameters({"base_model": "smollm2"}, "test"))


JUDGED = [
    (preset, name)
    for name in ("06_evaluation", "A1_bayesian_rewards", "A2_representation_reranking")
    for preset in presets_with("01_data", name)
]


@pytest.mark.parametrize(("preset", "name"), JUDGED)
def test_the_classifier_that_is_asked_is_the_one_that_01_writes(preset, name):
    folder = load_values(ROOT / f"params/{preset}/{name}.yaml").get("classifier")
    source = load_values(ROOT / f"params/{preset}/01_data.yaml").get("prompt_source", "lab")
    assert bool(folder) == (source == "chat")
    saved = "".join(Notebook.load(ROOT / "notebooks/01_data.ipynb").code_cells())
    assert not folder or f'real.harm.save(stage.path("{folder}"))' in saved


def test_the_picture_of_05_waits_for_04():
    notebook = Notebook.load(ROOT / "notebooks/05_grpo_categorized.ipynb")
    assert ("04_grpo_linear", "history.jsonl") in notebook.reads(notebook.parameters({}, "test"))


@pytest.mark.parametrize("preset", presets_with())
def test_every_parameter_file_fits_its_notebook(preset):
    runner = Runner(preset, ROOT)
    tasks = runner.plan(runner.select(everything=True), check_inputs=False)
    assert [task.name for task in tasks] == runner.series()
    written_before: set[str] = set()
    for task in tasks:
        assert {notebook for notebook, _ in task.reads} <= written_before, f"{task.name} reads what comes later"
        written_before.add(task.name)
