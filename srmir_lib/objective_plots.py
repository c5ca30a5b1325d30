"""Figures about what a reward model was asked for: how far apart it puts two answers, and how far it can be trusted."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from srmir_lib.plotting import CHOSEN, GRID, LINES, MARKERS, PALE, REJECTED, _axes, _boxes, _subplots

SHADES = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def gap_boxes(gaps: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "raw score units") -> Figure:
    """Reward gaps of every objective, a box per group of pairs: objective -> {group: (n,) gaps}."""
    names, groups = list(gaps), list(dict.fromkeys(group for of in gaps.values() for group in of))
    figure, axis = _axes(7, 0.34 * len(names) * len(groups) + 1.1)
    for at, group in enumerate(groups):
        places = [i + (at - (len(groups) - 1) / 2) * 0.3 for i in range(len(names))]
        for box in _boxes(axis, [gaps[name][group] for name in names], positions=places, widths=0.24, label=group):
            box.set(facecolor=(CHOSEN, REJECTED)[at % 2], alpha=0.75, hatch=("", "//")[at % 2])
    axis.axvline(0, color=PALE, linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(f"gap between the better and the worse answer ({unit}; whiskers: 5-95 %)")
    axis.legend(fontsize=7, loc="lower right")
    return figure


def best_of_n_curves(rows: Sequence[Mapping]) -> Figure:
    """What each method thinks it picks (left) and what it picks (right), against n: rows of `best_of_n_rows`."""
    figure, axes = _subplots(1, 2, figsize=(8, 3.2))
    for at, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == name]
        style = {"color": SHADES[at % len(SHADES)], "linestyle": LINES[at % len(LINES)], "markersize": 4}
        style |= {"marker": MARKERS[at % len(MARKERS)], "label": name}
        for axis, key in zip(axes, ("proxy", "truth"), strict=True):
            if name != "oracle" or key == "truth":
                axis.plot([row["n"] for row in own], [row[key] for row in own], **style)
    for axis, title in zip(axes, ("what the judge thinks (deviations)", "true goodness"), strict=True):
        sizes = sorted({row["n"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set(xlabel="best of n answers", title=title)
        axis.grid(color=GRID, linewidth=0.5)
    axes[1].legend(fontsize=7)
    return figure
