"""`srmir check`: what of the series works with a model and with preference pairs, told before hours are spent.

The pairs are read first. Of the model the configuration and the tokenizer are read, and no weights.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from srmir_lib.data.own_files import OwnPairs, read_pairs
from srmir_lib.data.own_sets import TOO_LONG, fitting, longest, token_counts
from srmir_lib.errors import InputError
from srmir_lib.models.abilities import Ability, abilities
from srmir_lib.models.loading import config_of, read_tokenizer
from srmir_lib.taxonomy import ordered

SHOWN = 12
"""Categories that a table names, unless all are asked for."""


@dataclass(frozen=True)
class Check:
    """What was found: `rows` of a table (what, how it stands), and the `problem` that keeps the series from running, in
    one line, or ""."""

    rows: list[tuple[str, str]]
    problem: str
    pairs: OwnPairs | None
    works: dict[str, Ability]
    tokens: list[int]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in self.rows)


def check(model: str = "", data: str = "", every: bool = False) -> Check:
    """Look at a model (id or folder), at preference pairs (a file or folder), or at both together.

    `every`: name all categories, however many. What cannot be read at all is an `InputError`.
    """
    if not (model or data):
        raise InputError("check: name a model, preference pairs, or both (--model, --data)")
    pairs = read_pairs(data) if data else None
    works = {ability.name: ability for ability in abilities(model)} if model else {}
    rows, tokens, problem = [], [], _model_problem(list(works.values()))
    if model:
        config = config_of(model)
        limit, kind = longest(config), ", ".join(config.architectures or [type(config).__name__])
        rows += [("model", f"{model} ({kind})"), ("  reads at most", f"{limit or 'any number of'} tokens")]
        rows += [(f"  {name}", _told(ability)) for name, ability in works.items()]
    if pairs and works and not works["margins"].works and not problem:
        problem = works["margins"].why
    if pairs:
        readable = works and not works["generation"].why.startswith("the tokenizer has no chat template")
        if readable and any(works[name].works for name in ("generation", "shared", "separate")):
            counts = token_counts(read_tokenizer(model), pairs)
            tokens, pairs = list(counts.values()), fitting(pairs, limit, counts)
        rows += _data_rows(pairs, data, tokens, every)
        problem = problem or pairs.problem
    what = {(True, True): "01 to 05 and A0 run on them", (True, False): "the model serves 02 to 05 and A0"}
    rows.append(("series", f"no: {problem}" if problem else what.get((bool(model), bool(data)), "01 reads the data")))
    return Check(rows, problem, pairs, works, tokens)


def _model_problem(works: Sequence[Ability]) -> str:
    """Why a model serves no notebook, or not all from 02 to 05: they need answers, and reward models on one trunk."""
    by = {ability.name: ability for ability in works}
    if not by:
        return ""
    if not by["generation"].works:
        return by["generation"].why
    return "" if by["shared"].works or by["separate"].works else by["shared"].why


def _told(ability: Ability) -> str:
    return f"{'works' if ability.works else 'no'}{': ' * bool(ability.why)}{ability.why}"


def _data_rows(pairs: OwnPairs, data: str, tokens: Sequence[int], every: bool) -> list[tuple[str, str]]:
    """The lines about data."""
    every_row = [row for part in pairs.splits.values() for row in part]
    sizes = ", ".join(f"{split} {len(part)}" for split, part in pairs.splits.items())
    cut = f" ({' and '.join(pairs.cut)} cut from train, by prompt)" if pairs.cut and not pairs.problem else ""
    rows = [("data", data), ("  pairs", f"{len(every_row)}: {sizes}{cut}")]
    left_out = [f"{reason} {count}" for reason, count in pairs.left_out.items() if count]
    rows.append(("  left out", ", ".join(left_out) or "none"))
    counts = {split: Counter(row["category"] for row in part) for split, part in pairs.splits.items()}
    names = ordered(set().union(*counts.values()))
    rows.append(("  categories", f"{len(names)}, with pairs in {', '.join(counts)}"))
    for name in names if every else names[:SHOWN]:
        rows.append((f"    {name}", ", ".join(str(count[name]) for count in counts.values())))
    if len(names) > SHOWN and not every:
        rows.append(("    …", f"{len(names) - SHOWN} more; --categories names all"))
    systems = sum(row["prompt"][0]["role"] == "system" for row in every_row)
    several = sum(len([turn for turn in row["prompt"] if turn["role"] != "system"]) > 1 for row in every_row)
    rows.append(("  conversations", f"{systems} pairs with a system turn, {several} with earlier turns"))
    if tokens:
        over = pairs.left_out[TOO_LONG]
        rows.append(("  tokens of a pair", f"median {median(tokens):.0f}, longest {max(tokens)}, {over} {TOO_LONG}"))
    return rows
