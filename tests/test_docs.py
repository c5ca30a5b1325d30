"""What the documents say is true of the repository: paths, commands, presets, packages, links, the changelog's form."""

import ast
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

import srmir_lib
from srmir_lib.cli import _parser, _setting
from srmir_lib.runner.series import ACCELERATE, Runner

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING, CHANGELOG = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"
PRESETS = ROOT / "params" / "README.md"
DOCUMENTS = [README, CONTRIBUTING, PRESETS, *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = _parser()._subparsers._group_actions[0].choices
TARGETS = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE).group(1).split())
MADE_BY_A_RUN = ("outputs/", ".venv", "RESULTS.md")
IN_THE_DATA_FOLDER = ("xsafety_en/", "gptfuzz/", "hh-rlhf/", "diasafety/", "overrefusal-completions/", "beavertails/")
IN_THE_DATA_FOLDER += (
    "safe-rlhf/",
    "hh-helpful/",
    "do-not-answer-responses/",
    "coconot/",
    "alpaca-harmless/",
    "safety-tuned-llamas/",
)
PACKAGES = {path.parent.name for path in ROOT.glob("srmir_lib/*/__init__.py")}
SOURCES = {path.name for path in ROOT.glob("srmir_lib/**/*.py")}
ENTRY = re.compile(r"- .+ Results: (unchanged(?: up to rounding)?|changed, because .+)\.")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code_of(text: str) -> tuple[list[str], list[str]]:
    """The lines of fenced shell blocks, without comments, and the inline code spans of a Markdown text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for kind, block in blocks if kind == "bash" for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for line in lines if line], [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def links_of(text: str) -> list[str]:
    """Targets of links and pictures that point into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in found if not re.match(r"https?:", target)]


def first_cells(text: str, heading: str) -> list[str]:
    """The first cells of the table whose header row begins with `heading`."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|:]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert table, f"no table whose first column is {heading!r}"
    return [line.split("|")[1].strip() for line in table.group(1).splitlines()]


def test_the_parsers_of_this_file_by_hand():
    text = "Say `make lab` or\n`srmir run\nlab`.\n\n```bash\nsrmir status lab  # see\n```\n[a](docs/x.md) [b](https://c.d)\n"
    assert code_of(text) == (["srmir status lab"], ["make lab", "srmir run lab"])
    assert links_of(text + '<img src="p.svg">') == ["docs/x.md", "p.svg"]
    assert first_cells("| a | b |\n|---|---:|\n| `x` | 1 |\n| y | 2 |\n", "a") == ["`x`", "y"]
    assert ENTRY.fullmatch("- A. Results: unchanged.") and ENTRY.fullmatch("- A. Results: changed, because b.")
    assert not ENTRY.fullmatch("- A. Results: changed.") and not ENTRY.fullmatch("- A.")


@each_document
def test_make_targets_exist(document):
    lines, spans = code_of(document.read_text(encoding="utf8"))
    named = {name for code in (*lines, *spans) for name in re.findall(r"^make ([a-z]\w*)", code)}
    assert named - TARGETS == set(), "no such make targets"


@each_document
def test_commands_are_understood(document):
    """A fenced command line is parsed by the real parser, its preset planned with its notebooks and settings."""
    lines, spans = code_of(document.read_text(encoding="utf8"))
    for line in (line for line in lines if line.startswith("srmir ")):
        options = _parser().parse_args(shlex.split(line)[1:])
        if hasattr(options, "preset"):
            runner = Runner(options.preset, ROOT)
            names = runner.select(getattr(options, "notebooks", []), everything=True)
            runner.plan(names, dict(map(_setting, getattr(options, "set", []))), check_inputs=False)
    for command, rest in (match.groups() for span in spans if (match := re.match(r"srmir ([a-z][\w-]*)(.*)", span))):
        assert command in COMMANDS, f"srmir {command}: no such command"
        if rest and (words := re.match(r" ([a-z][\w-]*)((?: [0-9A]\w*)*)$", rest)):
            Runner(words.group(1), ROOT).select(words.group(2).split(), everything=True)


@each_document
def test_paths_exist(document):
    _, spans = code_of(document.read_text(encoding="utf8"))
    gone = []
    for name in (
        span for span in spans if re.fullmatch(r"[\w.*-]+(/[\w.*-]*)+|[\w-]+\.(py|md|toml|yml|txt|cff)", span)
    ):
        if name.startswith((*MADE_BY_A_RUN, *IN_THE_DATA_FOLDER)):
            continue
        here = any(ROOT.glob(name.rstrip("/"))) or any((ROOT / "srmir_lib").glob(name.rstrip("/")))
        if not (here or ("/" not in name and (name in SOURCES or any((ROOT / "srmir_lib").rglob(name))))):
            gone.append(name)
    assert gone == [], "paths that do not exist"


@each_document
def test_modules_exist(document):
    named = re.findall(r"\bsrmir_lib((?:\.\w+)+)", document.read_text(encoding="utf8"))
    for name in named:
        parts = name.strip(".").split(".")
        places = [ROOT.joinpath("srmir_lib", *parts[:n]) for n in (len(parts), len(parts) - 1)]
        assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in places), f"srmir_lib{name}: no such module"


@pytest.mark.parametrize("document", [*DOCUMENTS, CHANGELOG], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document):
    targets = [target.split("#")[0] for target in links_of(document.read_text(encoding="utf8"))]
    gone = [target for target in targets if target not in MADE_BY_A_RUN and not (document.parent / target).exists()]
    assert gone == [], "links that lead nowhere"


def test_the_picture_is_one():
    picture = ElementTree.parse(ROOT / "docs" / "pipeline.svg").getroot()
    assert picture.tag.endswith("}svg") and "docs/pipeline.svg" in links_of(README.read_text())


def test_the_readme_is_one_page_of_short_lines():
    lines = README.read_text(encoding="utf8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "<"))] == []


def test_every_preset_is_explained_and_no_other():
    """The table of params/README.md against the folders that git knows, and its third column against their files."""
    text = PRESETS.read_text(encoding="utf8")
    listed = subprocess.run(["git", "ls-files", "params"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    known = {Path(file).parts[1] for file in listed}  # a preset of one's own need not be explained
    known.discard(ACCELERATE)
    folders = {path.name: path for path in (ROOT / "params").iterdir() if path.is_dir() and path.name in known}
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert [row[1].strip(" `") for row in rows] == [name.strip("`") for name in first_cells(text, "preset")]
    assert {row[1].strip(" `") for row in rows} == set(folders)
    for row in rows:
        named = set()
        for part in re.split(r"[,;] ", row[3].strip()):
            first, dash, last = part.partition("-")
            named |= {f"{n:02}" for n in range(int(first), int(last) + 1)} if dash else {part}
        files = {path.name.split("_")[0] for path in folders[row[1].strip(" `")].glob("*.yaml")}
        assert named == files, f"{row[1]}: the table names {sorted(named)}, the folder has {sorted(files)}"


def test_every_notebook_is_in_the_readme():
    text = README.read_text(encoding="utf8")
    notebooks = {path.stem for path in ROOT.glob("notebooks/*.ipynb")}
    named = set(re.findall(r"`((?:\d\d|A\d)_\w+)`", text))
    assert named == notebooks


@pytest.mark.parametrize("document", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_every_package_is_in_the_table(document):
    cells = first_cells(document.read_text(encoding="utf8"), "in `srmir_lib/`")
    assert {cell.strip("`/") for cell in cells if cell.startswith("`")} == PACKAGES


@pytest.mark.parametrize("path", sorted(ROOT.glob("srmir_lib/*/**/__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_says_what_to_read_first_and_exports_nothing(path):
    """A name in backticks is a module beside it, one of the library, or a command."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    words = ast.get_docstring(tree) or ""
    assert len(tree.body) == 1 and "first" in words, f"{path}: a docstring, and nothing else"
    for name in re.findall(r"`([a-z]\w+(?:\.\w+)*)`", words):
        places = [path.parent, ROOT / "srmir_lib"]
        known = any((p / name.replace(".", "/")).with_suffix(".py").is_file() or (p / name).is_dir() for p in places)
        assert known or name in COMMANDS, f"{path}: there is no {name}"


def test_the_changelog_says_of_every_entry_what_it_did_to_results():
    releases, kinds = [], []
    for line in CHANGELOG.read_text(encoding="utf8").splitlines():
        if line.startswith("## "):
            releases.append(line.removeprefix("## "))
        elif line.startswith("### "):
            kinds.append(line.removeprefix("### "))
        elif releases and line.strip():
            assert ENTRY.fullmatch(line), f"an entry is one line that ends with its results: {line}"
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    newest = next(name for name in releases if name != "Unreleased")
    assert re.fullmatch(rf"{re.escape(srmir_lib.__version__)} - \d{{4}}-\d\d-\d\d", newest)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == srmir_lib.__version__


def test_every_number_among_the_results_is_a_blessed_one():
    """Between README's marks a decimal number is followed by its place: `0.50<!-- preset/notebook/metric .2f -->`."""
    found = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README.read_text(encoding="utf8"), flags=re.DOTALL)
    assert found, "README.md has no place for results"
    marked = re.compile(r"([-+]?\d+\.\d+)<!-- ([\w.-]+)/([\w.-]+)/(.+?) \.(\d)f -->")
    for printed, preset, notebook, metric, digits in marked.findall(found.group(1)):
        file = ROOT / "outputs" / "reference" / preset / notebook / "metrics.json"
        value = json.loads(file.read_text())[metric]
        assert float(printed) == float(f"{value:.{digits}f}"), f"README.md says {printed} for {metric}, {file} {value}"
    assert re.findall(r"\d+\.\d+", marked.sub("", found.group(1))) == [], "numbers without their place"
