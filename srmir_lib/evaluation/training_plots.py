"""The figures of what is watched while a policy trains, in the style of `evaluation.plots`; each axis has a unit."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from srmir_lib.evaluation import plots
from srmir_lib.evaluation.plots import CHOSEN, INK, PALE, REJECTED, gridded, marker_of, series, style_of
from srmir_lib.policies.hacking_alarm import SIGNALS, Alarm
from srmir_lib.policies.reward import MONITOR


def gap_boxes(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Reward gaps of every objective, a box per group of pairs: objective -> {group: (n,) gaps}."""
    names, groups = list(gaps), list(dict.fromkeys(group for of in gaps.values() for group in of))
    figure, axis = plots.axes(7, 0.34 * len(names) * len(groups) + 1.1)
    for at, group in enumerate(groups):
        places = [i + (at - (len(groups) - 1) / 2) * 0.3 for i in range(len(names))]
        for box in plots.boxes(axis, [gaps[name][group] for name in names], places, widths=0.24, label=group):
            box.set(facecolor=(CHOSEN, REJECTED)[at % 2], alpha=0.75, hatch=("", "//")[at % 2])
    axis.axvline(0, color=PALE, linewidth=0.8)
    plots.name_rows(axis, names)
    axis.set_xlabel("gap between the better and the worse answer (raw score units; whiskers: 5-95 %)")
    axis.legend(fontsize=7, loc="lower right")
    return figure


def best_of_n_curves(rows: Sequence[Mapping]) -> Figure:
    """What each method thinks it picks (left) and what it picks (right), against n: rows of `best_of_n_rows`."""
    figure, panels = plots.subplots(1, 2, figsize=(8, 3.2))
    for at, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == name]
        style = style_of(at) | {"marker": marker_of(at), "markersize": 4, "label": name}
        for axis, key in zip(panels, ("proxy", "truth"), strict=True):
            if name != "oracle" or key == "truth":
                axis.plot([row["n"] for row in own], [row[key] for row in own], **style)
    for axis, title in zip(panels, ("what the reward model thinks (deviations)", "true goodness"), strict=True):
        sizes = sorted({row["n"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        gridded(axis, xlabel="best of n answers", title=title)
    panels[1].legend(fontsize=7)
    return figure


UNITS = ("(calibrated score)", "(tokens)", "(nats a token)", "(fraction)", "(nats a token)")
"""Of the alarm's signals, in their order."""


def monitor_curves(history: Sequence[Mapping]) -> Figure:
    """Scores of reward models over training, one line per category: keys `MONITOR + category` in the history.

    The models that do not reward a prompt are held-out detectors of reward hacking: watch for lines that part.
    """
    names = plots.ordered({key[len(MONITOR) :] for row in history for key in row if key.startswith(MONITOR)})
    figure, axis = plots.axes(7, 3.2)
    for index, name in enumerate(names):
        style = style_of(index) | {"color": plots.colour(name), "label": plots.label(name)}
        axis.plot(*series(history, MONITOR + name), **style)
    gridded(axis, xlabel="step (updates)", ylabel="calibrated score")
    if names:
        plots.legend_beside(axis)
    return figure


def labelled_points(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """One marked and named point each: name -> (x, y); `intervals` of y, name -> (low, high), as lines behind them."""
    figure, axis = plots.axes(6.5, 3.6)
    for index, (name, place) in enumerate(points.items()):
        if intervals:
            axis.plot([place[0]] * 2, intervals[name], color=PALE, linewidth=1.2)
        axis.plot(*place, marker_of(index), color=style_of(index)["color"], markersize=7)
        axis.annotate(name, place, (6, 5), textcoords="offset points", fontsize=8)
    axis.margins(x=0.25, y=0.15)
    gridded(axis, xlabel=xlabel, ylabel=ylabel)
    return figure


def alarm_curves(alarm: Alarm, histories: Mapping[str, Sequence[Mapping]]) -> Figure:
    """All that the alarm listens to, and the KL in any case, over training; one line per run (name -> history).

    The band is where healthy batches lie (mean and two deviations). The last panel has the worst deviation of each look
    and the threshold; a run above it rings, and says so in the legend.
    """
    figure, grid = plots.subplots(2, 3, figsize=(10, 4.8), sharex=True)
    *panels, last = grid.flat
    shown = dict(zip(SIGNALS, panels, strict=True))
    for index, (name, history) in enumerate(histories.items()):
        rows, style = alarm.check(history), {"marker": marker_of(index), "markersize": 3} | style_of(index)
        steps, rung = [row["step"] for row in rows], [row["step"] for row in rows if row["rings"]]
        for signal in [name for name in alarm.mean if name in rows[0]]:
            shown[signal].plot(steps, [row[signal] for row in rows], **style)
        if "KL" not in rows[0]:
            shown["KL"].plot(*series(history, "kl"), **style_of(index))
        heading = f"{name}: rings at step {rung[0]}" if rung else name
        last.plot(steps, [row["suspicion"] for row in rows], label=heading, **style)
    for (signal, axis), unit in zip(shown.items(), UNITS, strict=True):
        axis.set_ylabel(f"{signal} {unit}")
        if signal in alarm.mean:
            mean, spread = alarm.mean[signal], 2 * alarm.std[signal]
            axis.axhspan(mean - spread, mean + spread, color=plots.GRID, alpha=0.6, linewidth=0)
    last.axhline(alarm.threshold, color=INK, linewidth=0.8, linestyle=":")
    last.set_yscale("symlog", linthresh=2 * alarm.threshold)
    last.set_ylabel("suspicion (deviations)")
    for axis in grid[-1]:
        axis.set_xlabel("step (updates)")
    last.legend(fontsize=7, loc="upper right", frameon=False)
    return figure
