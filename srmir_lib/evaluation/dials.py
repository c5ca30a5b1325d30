"""What the town's dials do to its policies: one curve a policy, over the presets that differ in the dial alone."""

from collections.abc import Mapping

import numpy as np

from srmir_lib.evaluation.claims import Records
from srmir_lib.statistics import paired_t_interval

LEARNED = {
    "categorized": "06_evaluation/categorized/balanced_goodness",
    "cross-trained sum": "06_evaluation/linear/balanced_goodness",
    "one model": "06_evaluation/GRPO, one model/balanced_goodness",
}
"""Policies whose reward was learned, and where their balanced goodness is on record."""


AROUND = {
    "SFT": "06_evaluation/SFT/balanced_goodness",
    "referee": "06_evaluation/GRPO, referee/balanced_goodness",
    "ceiling": "01_data/ceiling",
    "one draft": "01_data/one_draft",
}
"""What stands around them: imitation, the exact referee as reward, and what acting on all beliefs, or on a single
draft, would reach."""


GAIN, GOODNESS = "gain over SFT (balanced goodness)", "balanced goodness"


def dial_rows(found: Mapping[str, Records], dials: Mapping[str, Mapping[str, float]]) -> list[dict]:
    """Means over towns with a paired t interval (95 %): rows with dial, panel, line, level, estimate, low, high, towns.

    `found`: preset -> its towns; `dials`: name -> {preset: level}. The panels are `GAIN`, what a learned reward adds to
    SFT within a town (its rows have `reference` 0), and `GOODNESS`. Fewer than two towns have no interval, and no row.
    """
    lines = [(GAIN, name, metric, AROUND["SFT"]) for name, metric in LEARNED.items()]
    lines += [(GOODNESS, name, metric, "") for name, metric in (LEARNED | AROUND).items()]
    rows = []
    for dial, levels in dials.items():
        for panel, name, metric, rival in lines:
            for world, level in sorted(levels.items(), key=lambda item: item[1]):
                towns = [own for own in found.get(world, {}).values() if metric in own and (not rival or rival in own)]
                if len(towns) > 1:
                    values = [own[metric] - own.get(rival, 0.0) for own in towns]
                    interval = paired_t_interval(values, np.zeros(len(values)))
                    row = {"dial": dial, "panel": panel, "line": name, "level": level, "towns": len(towns)}
                    rows.append(row | interval._asdict() | ({"reference": 0.0} if rival else {}))
    return rows
