"""Settings: typed values with a range, a default and a meaning, checked before anything slow is imported.

A notebook's parameters cell holds what a reader changes, and a group (`training: dict = {}`) for changes of the rest.
Its settings model knows all of them; a value that does not fit is one `InputError` that names the choices or the range.
"""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from srmir_lib.errors import InputError

PROCESSES = "processes that execute the notebook and train together; more than one are started by `srmir run`"


def told(meaning: str, default: Any = ..., **limits) -> Any:
    """A setting: what it means, its default (none: it must be given), and its limits (gt, ge, lt, le, min_length)."""
    return Field(default, description=meaning, **limits)


class Settings(BaseModel):
    """Strict about types (5.0 is no whole number, "5e-6" no number, true no 1), finite, frozen; a name that no setting
    has is refused. A field that is a `Settings` itself is a group: a mapping of what differs from its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _onto_defaults(cls, values: object) -> object:
        """A group's mapping says what differs from the group's default, which need not be that of its class."""
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in values}
        return {name: _onto(defaults.get(name), value) for name, value in values.items()}

    @classmethod
    def checked(cls, values: Mapping, where: str = ""):
        """Settings from `values`; what does not fit is an `InputError`, a line for every mistake, behind `where`."""
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [explain(cls, problem) for problem in error.errors()]
            raise InputError("; ".join(f"{where}: {text}" if where else text for text in problems)) from None

    @classmethod
    def of(cls, values: "Mapping | Settings", **changes):
        """Settings from what holds at least their names, such as a notebook's `globals()`, or other settings."""
        values = dict(values) | changes
        return cls.checked({name: values[name] for name in cls.model_fields if name in values})

    def changed(self, where: str = "", /, **changes):
        """The same settings but for `changes`, of a group for what its mapping says, checked like the first."""
        return type(self).checked(_onto(self, changes), where)

    def look_outside(self, root: Path) -> None:
        """An `InputError` where a folder that is read, and that no notebook writes, is not there; relative ones lie
        under `root`."""

    def rows(self, prefix: str = "", usual: "Settings | None" = None) -> list[dict]:
        """Name, value, meaning, and whether it is `changed`, of every setting, those of a group under `group.name`.

        `usual`: what a group is by default, where it has a default of its own.
        """
        rows = []
        for name, field in type(self).model_fields.items():
            value, default = getattr(self, name), field.get_default() if usual is None else getattr(usual, name)
            if isinstance(value, Settings):
                rows += value.rows(f"{prefix}{name}.", default)
                continue
            changed = not (field.is_required() and usual is None) and value != default
            rows.append({"name": prefix + name, "value": value, "changed": changed, "meaning": field.description or ""})
        return rows

    def flat(self, prefix: str = "") -> dict[str, Any]:
        """Name -> value, in plain types, of every setting, those of a group under `group.name`."""
        values = {}
        for name, value in self.model_dump().items():
            own = getattr(self, name)
            values |= own.flat(f"{prefix}{name}.") if isinstance(own, Settings) else {prefix + name: value}
        return values

    def groups(self) -> list[dict]:
        """`rows` of the groups alone: what a parameters cell does not show."""
        return [row for row in self.rows() if "." in row["name"]]

    def _repr_html_(self) -> str:
        """What a parameters cell does not show (all, without groups), in two tables: what is no default, in bold, and
        the rest, folded."""
        tables = {True: [], False: []}
        for row in self.groups() or self.rows():
            cells = (row["name"], repr(row["value"]), row["meaning"])
            style = ' style="text-align: left; font-weight: bold"' if row["changed"] else ' style="text-align: left"'
            line = "<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for cell in cells) + "</tr>"
            tables[row["changed"]].append(line)
        changed, rest = (f"<table><tbody>{''.join(lines)}</tbody></table>" * bool(lines) for lines in tables.values())
        count = f"{len(tables[False])} setting{'s' * (len(tables[False]) != 1)} as by default"
        return changed + f"<details><summary>{count}</summary>{rest}</details>" * bool(rest)

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        rows = self.groups() or self.rows()
        return "\n".join(
            f"{'* ' if r['changed'] else '  '}{r['name']} = {r['value']!r}  # {r['meaning']}" for r in rows
        )


class NotebookSettings(Settings):
    """What every notebook has."""

    preset: str = told("which parameter files and outputs belong together", min_length=1)
    output_dir: str = told("where to write; empty: outputs/<preset>/<this notebook>")
    seed: int = told("of everything that is drawn", ge=0)


def _onto(default: object, value: object) -> object:
    """`value`; if it changes a group, with the rest of the group's default."""
    if not isinstance(default, Settings) or not isinstance(value, Mapping):
        return value
    return dict(default) | {name: _onto(getattr(default, name, None), own) for name, own in value.items()}


def _device(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        raise ValueError(f"{value!r} is none of auto, cpu, mps, cuda, cuda:1, …")
    return value


Device = Annotated[str, BeforeValidator(_device)]


def explain(model: type[Settings], problem: dict) -> str:
    """One of pydantic's problems in one line: the setting, what it is, what it may be."""
    place = [part for part in problem["loc"] if isinstance(part, str)]
    name, value, kind = ".".join(map(str, problem["loc"])), problem["input"], problem["type"]
    if kind == "extra_forbidden":
        group = _group(model, place[:-1])
        return f"there is no setting {name}; there are {', '.join(group.model_fields)}"
    if kind == "missing":
        return f"{name}: not given; write a value"
    limits, fix = problem.get("ctx", {}), ""
    if kind == "literal_error":
        wanted = f"it must be one of {limits['expected']}"
    elif kind == "value_error":
        return f"{name}: {limits['error']}" if name else str(limits["error"])
    elif isinstance(value, str) and (number := yaml_number(value)) and kind in ("float_type", "int_type"):
        wanted, fix = "it is text, and must be a number", f"; write {number}"
    else:
        wanted = problem["msg"]
        for subject in ("Input", "String", "List", "Dictionary"):
            wanted = wanted.replace(f"{subject} should", "it must")
    return f"{name} = {value!r}: {wanted}{fix}"


def yaml_number(text: str) -> str:
    """How YAML 1.1 wants a number written that it read as text (5e-6 -> 5.0e-6); "" when it is no number."""
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text.strip(), re.IGNORECASE):
        return ""
    if text.strip().lstrip("+-").isdigit():
        return text.strip()
    mantissa, e, exponent = repr(float(text)).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+}" if e else mantissa


def _group(model: type[Settings], names: list[str]) -> type[Settings]:
    """The settings model that a path of group names leads to."""
    for name in names:
        annotation = model.model_fields[name].annotation
        kinds = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings))
    return model
