"""`srmir check`: what of the series works with a model and with preference pairs, told before hours are spent.

The pairs are read first. Of the model the configuration and the tokenizer are read, and no weights.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from srmir_lib.data.own_files import OwnPairs
from srmir_lib.data.own_sets import TOO_LONG, fitting, longest, token_counts
from srmir_lib.errors import InputError
from srmir_lib.models.abilities import Ability, abilities
from srmir_lib.models.kinds import is_causal, tokenizer_problem
from srmir_lib.models.loading import config_of, read_tokenizer
from srmir_lib.taxonomy import UNKNOWN, ordered

SHOWN = 12
"""Categories that a table names, unless all are asked for."""

FEW = 20
"""A share of so many test pairs is known to a fifth at best; of fewer it says little."""


@dataclass(frozen=True)
class Check:
    """What was found: `rows` of a table (what, how it stands), and the `problem` that keeps the series from running, in
    one line, or ""."""

    rows: list[tuple[str, str]]
    problem: str
    model: str
    pairs: OwnPairs | None
    works: dict[str, Ability]
    tokens: dict[tuple[str, int], int]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in self.rows)


def check(model: str = "", pairs: OwnPairs | None = None, every: bool = False) -> Check:
    """Look at a model (id or folder), at preference pairs, or at both together.

    `every`: name all categories, however many. What cannot be read at all is an `InputError`.
    """
    if not (model or pairs):
        raise InputError("check: name a model, preference pairs, or both (--model, --data)")
    works = {ability.name: ability for ability in abilities(model)} if model else {}
    rows, tokens, why = [], {}, _model_problem(works)
    problem = f"{model}: {why}" if why else ""
    if model:
        config = config_of(model)
        limit, kind = longest(config), ", ".join(config.architectures or [type(config).__name__])
        rows += [("model", f"{model} ({kind})"), ("  reads at most", f"{limit or 'any number of'} tokens")]
        rows += [(f"  {name}", _told(ability)) for name, ability in works.items()]
    if pairs:
        if model and is_causal(config) and not tokenizer_problem(tokenizer := read_tokenizer(model)):
            tokens = token_counts(tokenizer, pairs)
            pairs = fitting(pairs, limit, tokens)
        rows += _data_rows(pairs, list(tokens.values()), every)
        if pairs.problem:
            problem = problem or f"{pairs.source}: {pairs.problem}"
    runs = "01 to 05 and A0 run" if model and pairs else "the model serves 02 to 05 and A0" if model else "01 reads it"
    rows.append(("series", f"no: {problem}" if problem else runs))
    return Check(rows, problem, model, pairs, works, tokens)


def _model_problem(works: Mapping[str, Ability]) -> str:
    """Why a model does not serve all of 02 to 05: they need answers, a design of reward models, and margins."""
    if not works:
        return ""
    design = "shared" if works["shared"].works or not works["separate"].works else "separate"
    return next((works[name].why for name in ("generation", design, "margins") if not works[name].works), "")


def _told(ability: Ability) -> str:
    return f"{'works' if ability.works else 'no'}{': ' * bool(ability.why)}{ability.why}"


def _data_rows(pairs: OwnPairs, tokens: Sequence[int], every: bool) -> list[tuple[str, str]]:
    """The lines about data."""
    every_row = [row for part in pairs.splits.values() for row in part]
    sizes = ", ".join(f"{split} {len(part)}" for split, part in pairs.splits.items())
    cut = f" ({' and '.join(pairs.cut)} cut from train, by prompt)" if pairs.cut and not pairs.problem else ""
    rows = [("data", pairs.source), ("  pairs", f"{len(every_row)}: {sizes}{cut}")]
    left_out = [f"{reason} {count}" for reason, count in pairs.left_out.items() if count]
    rows.append(("  left out", ", ".join(left_out) or "none"))
    counts = {split: Counter(row["category"] for row in part) for split, part in pairs.splits.items()}
    names = ordered(set().union(*counts.values()))
    rows.append(("  categories", f"{len(set(names) - {UNKNOWN})}, with pairs in {', '.join(counts)}"))
    for name in names if every else names[:SHOWN]:
        rows.append((f"    {name}", ", ".join(str(count[name]) for count in counts.values())))
    if len(names) > SHOWN and not every:
        rows.append(("    …", f"{len(names) - SHOWN} more; --categories names all"))
    few = [name for name in names if 0 < counts.get("test", Counter())[name] < FEW]
    if few:
        more = f" and {len(few) - SHOWN} more" * (len(few) > SHOWN)
        rows.append(("  few test pairs", f"{', '.join(few[:SHOWN])}{more}: what is measured on them says little"))
    systems = sum(row["prompt"][0]["role"] == "system" for row in every_row)
    several = sum(len([turn for turn in row["prompt"] if turn["role"] != "system"]) > 1 for row in every_row)
    rows.append(("  conversations", f"{systems} pairs with a system turn, {several} with earlier turns"))
    if tokens:
        over = pairs.left_out[TOO_LONG]
        rows.append(("  tokens of a pair", f"median {median(tokens):.0f}, longest {max(tokens)}, {over} {TOO_LONG}"))
    return rows
