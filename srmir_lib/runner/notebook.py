"""What a notebook says about itself: its typed parameters, the artefacts it reads, the code it runs.

All of it is read from the notebook's cells with `ast`, so each fact is written once, where a reader sees it. Nothing is
executed and torch is not imported: a command line can refuse a bad parameter in under a second.
"""

import ast
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml
from pydantic import create_model

from srmir_lib.artifacts import as_written
from srmir_lib.errors import InputError
from srmir_lib.settings.base import Settings

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


GIVEN_BY_RUNNER = ("preset", "output_dir")


def is_exercise(cell: dict) -> bool:
    """Whether a cell is tagged `exercise`: the reader's own, which decides no result, so solving it reruns nothing."""
    return "exercise" in cell.get("metadata", {}).get("tags", [])


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series, parsed: `cells` as stored, `code` the syntax tree of all that decides results.

    `model` knows all it may be told, and `defaults` are the values of its parameters cell.
    """

    name: str
    path: Path
    metadata: dict
    cells: list[dict]
    code: ast.Module
    model: type[Settings]
    defaults: dict

    @classmethod
    def load(cls, path: Path) -> "Notebook":
        """Parse `path`; a damaged notebook, or a parameters cell that is not literals only, is an `InputError`."""
        with as_written(path, "not a readable notebook", "restore it from git"):
            return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> "Notebook":
        book = json.loads(path.read_text(encoding="utf8"))
        cells = [{**cell, "source": "".join(cell["source"])} for cell in book["cells"]]
        code = ast.parse("\n".join(map(_python, _decisive(cells))))
        tagged = [n for n, cell in enumerate(cells) if "parameters" in cell.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            raise InputError(f"{path}: {len(tagged)} cells are tagged `parameters`; it needs exactly one")
        source, number = cells[tagged[0]]["source"], tagged[0] + 1
        annotations, defaults = {}, {}
        for statement in ast.parse(source).body:
            try:
                name, defaults[name] = statement.target.id, ast.literal_eval(statement.value)
                annotations[name] = (_type(statement.annotation), defaults[name])
            except (AttributeError, TypeError, ValueError) as error:
                bad = source.splitlines()[statement.lineno - 1]
                wanted = f"write `name: type = literal` with types of {', '.join(TYPES)} and None"
                raise InputError(f"{path}: parameters cell {number}: {wanted}, not `{bad}`") from error
        model = _settings_model(code) or create_model("Parameters", __base__=Settings, **annotations)
        metadata = dict(book.get("metadata", {}))
        told = metadata.get("srmir", {})
        [entry.partition("/") for name in ("reads", "writes") for entry in told.get(name, [])]  # texts, all of them
        return cls(path.stem, path, metadata, cells, code, model, defaults)

    def parameters(self, values: dict, where: str) -> dict:
        """All it is told, from `values` and defaults, checked strictly; `where` names the source in errors."""
        return self.model.checked(self.defaults | values, where).model_dump()

    def reads(self, parameters: dict) -> list[tuple[str, str]]:
        """The artefacts of earlier stages it reads, `(notebook, name)`: its calls of `stage.input`, `dataset`, `rows`.

        Arguments are literals or parameters. Where a loop or a condition chooses, the notebook's metadata lists them:
        `"srmir": {"reads": ["01_data/prompts", "04_grpo_linear", ...]}`; a notebook alone means all it wrote, as does
        the empty name. An empty base model means the one of 01; a parameter that is empty, in the place of either,
        means that nothing is read.
        """
        entries = self.metadata.get("srmir", {}).get("reads", [])
        found = {(entry.partition("/")[0], entry.partition("/")[2]) for entry in entries}
        listed = bool(found)
        for call in ast.walk(self.code):
            method = call.func if isinstance(call, ast.Call) else None
            if not (isinstance(method, ast.Attribute) and getattr(method.value, "id", "") == "stage"):
                continue
            values = [_value(argument, parameters) for argument in call.args[:2]]
            if method.attr == "base_model" and values in ([], [""]):
                found.add(("01_data", "base_model"))
            left_empty = "" in values and (values[0] == "" or not isinstance(call.args[1], ast.Constant))
            if method.attr not in ("input", "dataset", "rows") or left_empty:
                continue
            if None not in values:
                found.add(tuple(values))
            elif not listed:
                text = ast.unparse(call)
                fix = "use literals or parameters, or list srmir.reads in its metadata"
                raise InputError(f"{self.path}: {text}: {fix}")
        return sorted(found)

    def code_cells(self) -> list[str]:
        """The sources of the code cells but for exercises: what decides results, as against the words around it."""
        return _decisive(self.cells)

    def imports(self, root: Path) -> tuple[list[Path], set[str]]:
        """Files of `srmir_lib` that this notebook imports, directly or through other modules, sorted; and the names of
        the other packages that it and these files import."""
        found, others, waiting = set(), set(), [self.code]
        while waiting:
            names = _imported(waiting.pop())
            others |= {name.split(".")[0] for name in names} - {"srmir_lib"}
            for module in sorted(name for name in names if name.split(".")[0] == "srmir_lib"):
                for file in _files(root, module.split(".")):
                    if file not in found:
                        found.add(file)
                        waiting += [ast.parse(file.read_text(encoding="utf8"))] if file.suffix == ".py" else []
        return sorted(found), others


def load_values(path: Path) -> dict:
    """A parameter file: a YAML mapping; anything else is an `InputError` that names the file and line."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf8")) or {}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror.lower()}; it must be a parameter file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: write one `name: value` a line, not a {type(values).__name__}")
    return values


def _decisive(cells: list[dict]) -> list[str]:
    return [cell["source"] for cell in cells if cell["cell_type"] == "code" and not is_exercise(cell)]


def _python(source: str) -> str:
    """A cell without IPython's own lines (`%matplotlib inline`, `!ls`), which are not Python."""
    return "\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in source.splitlines())


def _settings_model(code: ast.Module) -> type[Settings] | None:
    """The settings model that a notebook calls for, if any: `LinearSettings.of(globals())`."""
    called = {
        call.func.value.id
        for call in ast.walk(code)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "of"
        and isinstance(call.func.value, ast.Name)
        and [ast.unparse(argument) for argument in call.args] == ["globals()"]
    }
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("srmir_lib.settings."):
            for alias in node.names:
                if alias.name in called:
                    return getattr(import_module(node.module), alias.name)
    return None


def _type(node: ast.expr) -> object:
    """The type that an annotation spells with `TYPES`; anything else is a `TypeError`. Nothing in it is executed."""
    match node:
        case ast.Name(id=name) if name in TYPES:
            return TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left) | _type(right)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return list[_type(item)]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return dict[_type(key), _type(value)]
    raise TypeError(ast.unparse(node))


def _value(node: ast.expr, parameters: dict) -> str | None:
    """A literal text, or the value of a parameter; None when only running the cell could tell."""
    if isinstance(node, ast.Constant):
        return node.value
    return parameters.get(node.id) if isinstance(node, ast.Name) else None


def _imported(tree: ast.Module) -> set[str]:
    """Dotted names that a module mentions in any import, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(root: Path, parts: list[str]) -> list[Path]:
    """Source files behind a dotted name: each package on the way with its data files, and the module at its end."""
    files = []
    for depth in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:depth])
        if place.is_dir():
            data = [file for file in place.iterdir() if file.suffix != ".py" and file.is_file()]
            files += data + [file for file in (place / "__init__.py",) if file.is_file()]
        elif place.with_suffix(".py").is_file():
            files.append(place.with_suffix(".py"))
    return files
