"""The three lists of dependencies agree, and make does what it lists."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from srmir_lib.runner.manifest import DECISIVE
from srmir_lib.runner.notebook import Notebook

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct() -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions, no local suffix such as +cpu"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def needed() -> set[str]:
    """All that the direct dependencies pull in on this machine, themselves included, by installed metadata."""
    found: set[tuple[str, frozenset]] = set()
    waiting = list(direct().values())
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for text in distribution(requirement.name).requires or []:
            below = Requirement(text)
            extras = ["", *requirement.extras]
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(below)
    return {name for name, _ in found if not name.startswith(("nvidia", "cuda", "triton"))}


def test_with_vllm_what_decides_results_is_pinned_alike():
    lines = (ROOT / "constraints-vllm.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    other = {"vllm", "lark"}  # by its metadata
    own, pins = [one for one in wanted if one.name not in other], pinned()
    assert len(own) == 8 and len(wanted) == 10
    assert all(str(one.specifier) == f"=={pins[one.name]}" for one in own)
    trls = next(r for r in map(Requirement, distribution("trl").requires) if r.name == "vllm")
    assert all(trls.specifier.contains(str(one.specifier).strip("=")) for one in wanted if one.name == "vllm")


def test_constraints_pin_exactly_what_is_needed():
    pins = pinned()
    assert pins["torch"] == "2.13.0"
    for name, requirement in direct().items():
        assert requirement.specifier.contains(pins[name]), (
            f"{name} {pins[name]} is pinned, pyproject wants {requirement}"
        )
    assert needed() - pins.keys() == set(), "pulled in, but not pinned in constraints.txt"
    assert pins.keys() - needed() == set(), "pinned in constraints.txt, but nothing needs it"


def test_conda_environment_names_the_same_packages_with_a_reason_each():
    path = ROOT / "environment.yml"
    environment = yaml.safe_load(path.read_text())["dependencies"]
    listed = [entry for entry in environment[-1]["pip"] if "==" in entry]
    assert {canonicalize_name(entry.split("==")[0]) for entry in listed} == direct().keys()
    for entry in listed:
        name, version = entry.split("==")
        assert pinned()[canonicalize_name(name)] == version, f"{entry}: constraints.txt has another version"
    entries = [line for line in path.read_text().splitlines() if re.match(r" +- (?!pip:)", line)]
    assert [line for line in entries if not re.search(r"  # \S+ \S+", line)] == [], "every line says why"


def test_every_import_is_a_declared_dependency():
    owners = packages_distributions()
    imported = set()
    for path in [*ROOT.glob("srmir_lib/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.split(".")[0] for name in names}
    own = {"srmir_lib", "packaging"} | {path.stem for path in ROOT.glob("tests/*.py")}
    outside = {
        canonicalize_name(owners[name][0]) for name in imported - sys.stdlib_module_names - own if name in owners
    }
    extra = re.findall(r"^([\w-]+)==", (ROOT / "requirements-smollm2.txt").read_text(), flags=re.MULTILINE)
    assert outside - direct().keys() - set(extra) == set()


COMPUTES_NOTHING = {
    "gguf": "looks whether a file of weights is whole, before transformers reads it",
    "huggingface_hub": "says whether the hub can be reached, before transformers loads from it",
    "IPython": "shows what a cell gives",
    "ipykernel": "runs cells",
    "jinja2": "fills in the report, and the chat template that a model's folder holds",
    "jupyter_client": "starts kernels",
    "matplotlib": "draws",
    "nbclient": "runs notebooks",
    "nbformat": "reads and writes notebooks",
    "pandas": "holds the tables that notebooks show; metrics are means and quotients of a few numbers",
    "papermill": "runs notebooks",
    "psutil": "looks at processes",
    "pyarrow": "reads the rows of parquet files as they are",
    "pydantic": "checks settings",
    "safetensors": "reads and writes tensors as they are",
    "tqdm": "draws bars",
    "yaml": "reads parameters, and these are compared as values",
}
"""What library and notebooks import although another version of it makes no stage stale, and why not."""


def test_every_package_that_computes_makes_a_stage_stale():
    sources = [path.read_text() for path in ROOT.glob("srmir_lib/**/*.py")]
    for path in ROOT.glob("notebooks/*.ipynb"):
        sources += Notebook.load(path).code_cells()
    imported = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.split(".")[0] for name in names}
    outside = imported - sys.stdlib_module_names - {"srmir_lib"}
    decisive = DECISIVE.keys() | set().union(*DECISIVE.values())
    assert outside - decisive - COMPUTES_NOTHING.keys() == set(), "add it to DECISIVE, or say why it decides nothing"
    assert COMPUTES_NOTHING.keys() - outside == set() == COMPUTES_NOTHING.keys() & decisive
    assert DECISIVE.keys() - outside == set(), "nothing imports it"
    owners = packages_distributions()
    for name, packages in DECISIVE.items():
        assert canonicalize_name(owners[name][0]) in packages, f"{name} is the package {owners[name][0]}"


def test_make_lists_its_targets_and_each_has_a_recipe():
    said = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    listed = set(re.findall(r"^  make (\w+)", said, flags=re.MULTILINE))
    assert {"setup", "lab", "smoke", "test", "lint", "jupyter", "report", "bless", "clean", "everything"} <= listed
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE).group(1)
    assert listed == set(phony.split())


def test_setup_refuses_an_old_python_in_one_line(tmp_path):
    old = tmp_path / "python3"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    assert "Python 3.11 or newer is needed" in done.stderr and "is 3.9;" in done.stderr


def test_continuous_integration_calls_lint_and_tests():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111, "chmod +x .ci/run"
    assert {"make lint", "make test"} <= set(script.read_text().splitlines())
