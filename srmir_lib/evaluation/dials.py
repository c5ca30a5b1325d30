"""What the town's dials do to its policies: one curve a policy, over the presets that differ in the dial alone."""

from collections.abc import Mapping

from srmir_lib.evaluation.claims import Records
from srmir_lib.statistics import paired_t_interval

LEARNED = {
    "categorized": "06_evaluation/categorized/balanced_goodness",
    "cross-trained sum": "06_evaluation/linear/balanced_goodness",
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
