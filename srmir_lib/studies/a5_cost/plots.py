"""The figures of the cost study, in the style of `evaluation.plots`: no colour alone, units on every axis."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from srmir_lib.evaluation.plots import CHOSEN, GRID, INK, PALE, axes, subplots
from srmir_lib.studies.a5_cost.limits import Spread


def growth_curves(
    measured: Mapping[str, Mapping[int, Spread]],
    limit: Mapping[str, Mapping[int, float]],
    separate: Mapping[str, Mapping[int, float]],
) -> Figure:
    """One panel per axis label: cost in plain forwards over its values, with the limit and K separate models drawn in.

    `measured`: medians and quartiles; `limit`, `separate`: numbers for the same values. Both axes are logarithmic.
    """
    figure, axes = subplots(1, len(measured), figsize=(3.1 * len(measured), 3.0), sharey=True, squeeze=False)
    for axis, (label, points) in zip(axes.flat, measured.items(), strict=True):
        values = list(points)
        middle, low, high = (np.array(part) for part in zip(*points.values(), strict=True))
        axis.plot(values, [separate[label][v] for v in values], "x:", color=PALE, label="separate models (K forwards)")
        axis.errorbar(
            values, middle, [middle - low, high - middle], fmt="o-", color=CHOSEN, capsize=2, label="shared, measured"
        )
        axis.plot(values, [limit[label][v] for v in values], "--", color=INK, linewidth=1, label="shared, limit")
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.xaxis.set_major_locator(FixedLocator(values))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 3, 5, 7, 10, 14, 28]))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(color=GRID, linewidth=0.5)
    axes.flat[0].set_ylabel("cost (plain forwards of one model)")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return figure


def goal_chart(rows: Sequence[Mapping]) -> Figure:
    """How many times faster, against goal and limit (by multiply-adds, if there is one): rows of `cost.table_row`."""
    figure, axis = axes(7, 0.38 * len(rows) + 1.1)
    for height, row in enumerate(rows):
        first = height == 0
        axis.plot([row["low"], row["high"]], [height, height], color=CHOSEN, linewidth=2)
        axis.plot(row["median"], height, "o", color=CHOSEN, label="measured (line: quartiles)" if first else None)
        axis.plot(row["goal"], height, "|", color=INK, markersize=14, label="goal" if first else None)
        if row["limit, work"] is not None:
            axis.plot(
                row["limit, work"], height, "D", color="white", markeredgecolor=INK, label="limit" if first else None
            )
    axis.set_yticks(range(len(rows)), [row["metric"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("times faster than the peer")
    axis.grid(color=GRID, linewidth=0.5, axis="x")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
