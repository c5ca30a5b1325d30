"""What the town's dials do to its policies: one curve a policy, over the presets that differ in the dial alone."""

from collections.abc import Mapping, Sequence

from srmir_lib.evaluation.claims import Records
from srmir_lib.evaluation.sentences import joined, signed
from srmir_lib.statistics import paired_t_interval

LEARNED = {
    "categorized": "06_evaluation/categorized/balanced_goodness",
    "fair sum (linear)": "06_evaluation/linear/balanced_goodness",
    "one model": "06_evaluation/GRPO, one model/balanced_goodness",
}
"""Policies whose reward was learned, and where their balanced goodness is on record."""


AROUND = {
    "start": "06_evaluation/start/balanced_goodness",
    "SFT": "06_evaluation/SFT/balanced_goodness",
    "referee": "06_evaluation/GRPO, referee/balanced_goodness",
    "ceiling": "01_data/ceiling",
    "one draft": "01_data/one_draft",
}
"""What stands around them: imitation in two doses, the exact referee as reward, and what acting on all beliefs, or on a
single draft, would reach."""

IMITATION = tuple(AROUND[dose] for dose in ("start", "SFT"))


GAIN, GOODNESS = "gain over imitation (balanced goodness)", "balanced goodness"


def dial_rows(found: Mapping[str, Records], dials: Mapping[str, Mapping[str, float]]) -> list[dict]:
    """Means over towns with a paired t interval (95 %): rows with dial, panel, line, level, estimate, low, high, towns.

    `found`: preset -> its towns; `dials`: name -> {preset: level}. The panels are `GAIN`, what a learned reward adds to
    the better dose of `IMITATION` within a town (its rows have `reference` 0), and `GOODNESS`. Fewer than two towns
    have no interval, and no row.
    """
    lines = [(GAIN, name, metric, IMITATION) for name, metric in LEARNED.items()]
    lines += [(GOODNESS, name, metric, ()) for name, metric in (LEARNED | AROUND).items()]
    rows = []
    for dial, levels in dials.items():
        for panel, name, metric, rivals in lines:
            for world, level in sorted(levels.items(), key=lambda item: item[1]):
                towns = [own for own in found.get(world, {}).values() if own.keys() >= {metric, *rivals}]
                if len(towns) > 1:
                    values = [own[metric] - max((own[rival] for rival in rivals), default=0.0) for own in towns]
                    interval = paired_t_interval(values)
                    row = {"dial": dial, "panel": panel, "line": name, "level": level, "towns": len(towns)}
                    rows.append(row | interval._asdict() | ({"reference": 0.0} if rivals else {}))
    return rows


def about_gain(rows: Sequence[Mapping], dial: str, line: str = "categorized") -> str:
    """Whether what `line` adds to imitation is told from nothing at the lowest level of a dial (expected: not), and
    grows at every step of it (expected: it does; means, for the trend claims have the intervals). `rows` of
    `dial_rows`."""
    own = [row for row in rows if (row["dial"], row["panel"], row["line"]) == (dial, GAIN, line)]
    if len(own) < 2:
        return f"{dial}: fewer than two levels are on record."
    levels = [
        f"{signed(row['estimate'])} [{signed(row['low'])}, {signed(row['high'])}] at {row['level']:g}" for row in own
    ]
    grows = all(one["estimate"] < other["estimate"] for one, other in zip(own, own[1:], strict=False))
    told = not own[0]["low"] <= 0 <= own[0]["high"]
    lowest = "is told from nothing, not as expected" if told else "cannot be told from nothing, as expected"
    return (
        f"{dial}: {line} adds {joined(levels)} to imitation at its better dose. At the lowest level it {lowest}; "
        f"grows at every step: "
        f"{'yes, as expected' if grows else 'no, not as expected'}."
    )


def about_lead(found: Mapping[str, Records], levels: Mapping[str, float], dial: str, line: str = "categorized") -> str:
    """How far `line` is ahead of the other learned rewards at every level of a dial (differences within a town, with
    their paired t intervals), and whether by more at every step; the trend claims decide.

    `found`: preset -> its towns; `levels`: preset -> its level of the dial.
    """
    said = []
    for rival in (name for name in LEARNED if name != line):
        leads, told = [], []
        for world, level in sorted(levels.items(), key=lambda item: item[1]):
            towns = [own for own in found.get(world, {}).values() if own.keys() >= {LEARNED[line], LEARNED[rival]}]
            if len(towns) > 1:
                mean, low, high = paired_t_interval([own[LEARNED[line]] - own[LEARNED[rival]] for own in towns])
                leads.append(mean)
                told.append(f"{signed(mean)} [{signed(low)}, {signed(high)}] at {level:g}")
        if leads:
            grows = len(leads) > 1 and all(one < other for one, other in zip(leads, leads[1:], strict=False))
            said.append(f"of {rival} by {joined(told)}; more at every step: {'yes' if grows else 'no'}")
    return f"{dial}: {line} is ahead {'. It is ahead '.join(said)}." if said else f"{dial}: not on record."
