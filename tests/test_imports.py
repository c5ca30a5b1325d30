"""The library's layout: packages import downward only, in no circle, and nothing is imported lazily without need."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("errors", "taxonomy"),
    ("artifacts", "conversations", "statistics", "settings"),
    ("rows",),
    ("papers",),
    ("models",),
    ("data",),
    ("reward_models",),
    ("policies",),
    ("evaluation",),
    ("lab", "runner"),
    ("studies",),
    ("cli", "exercises"),
    ("__main__",),
)
"""From the ground up: a module imports from its own package and from lower rows."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
RUNNER_READS = {"errors", "taxonomy", "artifacts", "rows", "settings", "runner", "evaluation.measures"}
MAY_BE_LAZY = ("cli.py", "_file.py", "exercises.py")
FILES = sorted(path for path in (ROOT / "srmir_lib").rglob("*.py") if path.name != "__init__.py")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "srmir_lib").with_suffix("").parts)


MODULES = set(map(dotted, FILES))


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module of this library, whether inside a function) for every import of `path`."""
    found = []

    def walk(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((a.name.removeprefix("srmir_lib."), lazy) for a in child.names if "srmir_lib" in a.name)
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "srmir_lib":
                base = child.module.removeprefix("srmir_lib").removeprefix(".")
                for alias in child.names:
                    whole = f"{base}.{alias.name}".removeprefix(".")
                    found.append((whole if whole in MODULES else base, lazy))
            walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    walk(ast.parse(path.read_text(encoding="utf8")), False)
    return [(module, lazy) for module, lazy in found if module]


def package(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_go_down(path):
    own = package(dotted(path))
    for module, _ in imports(path):
        assert RANK[package(module)] < RANK[own] or package(module) == own, f"{dotted(path)} imports {module}"
        if own == "runner":
            allowed = module in RUNNER_READS or package(module) in RUNNER_READS
            assert allowed, f"{dotted(path)} imports {module}: the runner starts without torch"
        if own == "policies":
            assert package(module) != "reward_models", f"{dotted(path)} imports {module}: any scorer will do there"


def test_there_is_no_circle_not_even_of_lazy_imports():
    below = {dotted(path): {module for module, _ in imports(path)} for path in FILES}
    left = dict(below)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {', '.join(sorted(left))}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_own_modules_are_imported_at_the_top(path):
    if not path.name.endswith(MAY_BE_LAZY):
        assert [module for module, lazy in imports(path) if lazy] == []


def test_the_runner_and_the_command_line_start_without_torch():
    """What these files import at the top, followed to the end, holds no file that imports torch at its top."""

    def slow(path: Path) -> bool:
        tops = ast.parse(path.read_text(encoding="utf8")).body
        named = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module or "" for node in tops if isinstance(node, ast.ImportFrom)}
        return any(name.split(".")[0] in ("torch", "transformers", "trl", "peft", "sklearn") for name in named)

    by_name, seen, left = {dotted(path): path for path in FILES}, set(), ["cli"]
    while left:
        name = left.pop()
        if name in by_name and name not in seen:
            seen.add(name)
            left += [module for module, lazy in imports(by_name[name]) if not lazy]
    assert {"runner.series", "runner.seeds"} <= seen and [name for name in seen if slow(by_name[name])] == []
