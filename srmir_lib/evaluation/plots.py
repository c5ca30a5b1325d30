"""One function per figure, each returning a matplotlib `Figure`; saving and showing is the notebook's business.

The categories of the taxonomy keep their colour (`taxonomy.COLOURS`) in every figure, others take what is left; and
never colour alone: labels, markers or line styles carry the same information, so the figures can be read in grey and by
colour-blind readers.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from srmir_lib.taxonomy import COLOURS, ordered
from srmir_lib.taxonomy import full_name as label

INK, PALE, GRID = "#222222", "#9A9A9A", "#DDDDDD"


CHOSEN, REJECTED = "#0072B2", "#D55E00"
REFUSES, ANSWERS = CHOSEN, REJECTED


MARKERS = "osD^vPX<>*"


LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))


SHADES = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of runs and methods; the categories have their own."""


OTHERS = (
    *("#E69F00", "#5D4A8A", "#56B4E9", "#0072B2", "#CC79A7", "#D55E00", "#F0E442", "#009E73", "#A6CEE3", "#882255"),
    *("#FB9A99", "#117733", "#44AA99", "#332288"),
)
"""Colours of categories that the taxonomy does not have, in turn; neighbours differ in lightness."""


STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def category_counts(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Examples per category before and after balancing, as paired bars: category key -> count."""
    names = ordered({*before, *after})
    figure, axis = axes(7, 0.42 * len(names) + 1.2)
    rows = np.arange(len(names))
    axis.barh(rows - 0.2, [before.get(n, 0) for n in names], 0.38, color="white", edgecolor=PALE, hatch="////")
    axis.barh(rows + 0.2, [after.get(n, 0) for n in names], 0.38, color=colours(names))
    for row, name in enumerate(names):
        for shift, counts in ((-0.2, before), (0.2, after)):
            axis.text(counts.get(name, 0), row + shift, f" {counts.get(name, 0):,}", va="center", fontsize=7)
    name_rows(axis, [label(n) for n in names])
    axis.set(xlabel="examples (count)", title="Hatched: as collected.  Solid: after balancing.")
    return figure


def accuracy_heat_map(matrix, categories: Sequence[str], labels: Sequence[str], row_labels: Sequence[str]) -> Figure:
    """Pair accuracy of model i (row) on category j (column), (R, K) in [0, 1]; NaN cells stay empty. `labels` (N,): the
    category of each pair, to tell how many there are."""
    matrix, counts = np.asarray(matrix, dtype=float), Counter(labels)
    figure, axis = axes(0.75 * len(categories) + 3, 0.5 * len(row_labels) + 2)
    image = axis.imshow(matrix, cmap="cividis", vmin=min(0.5, np.nanmin(matrix)), vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            # cividis runs from dark to light: white text below the middle, ink above.
            ink = "white" if image.norm(value) < 0.55 else INK
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    axis.set_xticks(range(len(categories)), [f"{label(n)} ({counts[n]})" for n in categories], rotation=35, ha="right")
    axis.set_yticks(range(len(row_labels)), [label(n) for n in row_labels])
    axis.set(xlabel="pairs of this category (how many)", ylabel="reward model")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="pair accuracy (fraction)")
    return figure


def score_distributions(chosen: Mapping[str, Sequence[float]], rejected: Mapping[str, Sequence[float]]) -> Figure:
    """Scores of chosen (filled) and rejected (outlined) responses per category: category key -> (n,) scores."""
    names = ordered(chosen)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, panels = panels_for(len(names), columns, figsize=(2.3 * columns, 1.7 * lines + 0.5))
    for axis, name, shade in zip(panels, names, colours(names), strict=True):
        bins = np.histogram_bin_edges(np.concatenate([chosen[name], rejected[name]]), 24)
        axis.hist(chosen[name], bins, density=True, color=shade, alpha=0.75, label="chosen")
        axis.hist(rejected[name], bins, density=True, histtype="step", color=INK, linestyle="--", label="rejected")
        axis.set_title(textwrap.fill(f"{label(name)} ({len(chosen[name])})", 22), fontsize=9)
        axis.set_yticks([])
    panels[0].legend(fontsize=7)
    figure.supxlabel("score (reward-model units); how many answers of either kind in brackets", fontsize=9)
    figure.supylabel("density", fontsize=9)
    return figure


def margin_histogram(margins, refuses: Sequence[bool]) -> Figure:
    """Legend margins (N,), stacked by whether the better answer refuses (N,); zero marked, as below it the annotator
    disagrees with the pair."""
    margins, refuses = np.asarray(margins, dtype=float), np.asarray(refuses, dtype=bool)
    figure, axis = axes(7, 3.4)
    bins = np.histogram_bin_edges(margins, 40)
    names = ["the better answer refuses", "the better answer does not"]
    _, _, bars = axis.hist(
        [margins[refuses], margins[~refuses]], bins, stacked=True, color=[REFUSES, ANSWERS], label=names
    )
    for bar in bars[1]:
        bar.set(hatch="///", edgecolor="white", linewidth=0)
    axis.legend(fontsize=8)
    axis.axvline(0, color=INK, linewidth=1)
    axis.set(xlabel="margin (hidden-state units)", ylabel="pairs (count)")
    axis.set_title(f"{(margins < 0).mean():.0%} of the margins are negative")
    return figure


def reward_scales(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> Figure:
    """Spread of every model's scores, raw and constrained, side by side: category key -> (n,) scores."""
    names = ordered(before)
    figure, panels = subplots(1, 2, figsize=(8, 0.36 * len(names) + 1.3), sharey=True)
    places = range(len(names))
    for axis, scores, scale in zip(panels, (before, after), ("raw", "calibrated"), strict=True):
        for box, shade in zip(boxes(axis, [scores[n] for n in names], places, widths=0.6), colours(names), strict=True):
            box.set_facecolor(shade)
        axis.axvline(0, color=PALE, linewidth=0.8)
        axis.set(xlabel=f"{scale} score (whiskers: 5-95 %)", title=scale)
    name_rows(panels[0], [label(n) for n in names])
    return figure


def gap_boxes(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Reward gaps of every objective, a box per group of pairs: objective -> {group: (n,) gaps}."""
    names, groups = list(gaps), list(dict.fromkeys(group for of in gaps.values() for group in of))
    figure, axis = axes(7, 0.34 * len(names) * len(groups) + 1.1)
    for at, group in enumerate(groups):
        places = [i + (at - (len(groups) - 1) / 2) * 0.3 for i in range(len(names))]
        for box in boxes(axis, [gaps[name][group] for name in names], places, widths=0.24, label=group):
            box.set(facecolor=(CHOSEN, REJECTED)[at % 2], alpha=0.75, hatch=("", "//")[at % 2])
    axis.axvline(0, color=PALE, linewidth=0.8)
    name_rows(axis, names)
    axis.set_xlabel("gap between the better and the worse answer (raw score units; whiskers: 5-95 %)")
    axis.legend(fontsize=7, loc="lower right")
    return figure


def best_of_n_curves(rows: Sequence[Mapping]) -> Figure:
    """What each method thinks it picks (left) and what it picks (right), against n: rows of `best_of_n_rows`."""
    figure, panels = subplots(1, 2, figsize=(8, 3.2))
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
        gridded(axis, xlabel="best of n (answers)", title=title)
    panels[1].legend(fontsize=7)
    return figure


def forest_plot(
    rows: Sequence[Mapping],
    xlabel: str,
    reference: float = 0.0,
    lines: Mapping[str, float] | None = None,
    main: Sequence[str] = (),
) -> Figure:
    """Estimates with 95 % intervals, one row each: dicts with `label`, `estimate`, `low`, `high`, optionally `group`.

    Rows of one `group` stand together under its name; the vertical line marks `reference` (no effect), those of `lines`
    what their names say. Rows whose label is in `main` have a colour and a marker each, the others are then pale.
    """
    groups = list(dict.fromkeys(row.get("group", "") for row in rows))
    ticks, labels, height = [], [], 0
    figure, axis = axes(7, 0.27 * (len(rows) + 1.4 * len(groups)) + 0.9)
    for group in groups:
        if group:
            ticks.append(height)
            labels.append(group)
            height += 1
        for row in (r for r in rows if r.get("group", "") == group):
            line, dot, marker = (PALE, PALE, "s") if main else (CHOSEN, INK, "s")
            if row["label"] in main:
                at = list(main).index(row["label"])
                line = dot = SHADES[1 + at]
                marker = marker_of(at)
            axis.plot([row["low"], row["high"]], [height, height], color=line, linewidth=1.6)
            axis.plot(row["estimate"], height, marker, color=dot, markersize=4)
            ticks.append(height)
            labels.append(row["label"])
            height += 1
        height += 0.4
    axis.axvline(reference, color=PALE, linewidth=1, linestyle="--")
    for at, (name, where) in enumerate((lines or {}).items(), 2):  # the second style is that of the reference
        axis.axvline(where, **style_of(at), linewidth=1.2, label=f"{name} ({where:.2f})")
    if lines:
        axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(lines))
    axis.set_yticks(ticks, labels)
    for tick in axis.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in groups else "normal")
    axis.set_ylim(height - 0.4, -0.8)
    axis.set_xlabel(f"{xlabel} ({'mark' if main else 'square'}: estimate, line: 95 % interval)")
    axis.grid(color=GRID, linewidth=0.5, axis="x")
    return figure


def dial_curves(rows: Sequence[Mapping]) -> Figure:
    """Estimates with 95 % intervals against the dials of the town, a column a dial: rows of `dials.dial_rows`.

    A line keeps its colour, dashes and marker in all panels, and the lines of a panel stand a little beside each other,
    so that their intervals do not cover one another.
    """
    dials, kinds, lines = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dial", "panel", "line"))
    size = {"figsize": (4.2 * len(dials) + 1.2, 2.9 * len(kinds)), "squeeze": False, "sharey": "row"}
    figure, panels = subplots(len(kinds), len(dials), **size)
    for axis, (kind, dial) in zip(panels.flat, [(kind, dial) for kind in kinds for dial in dials], strict=True):
        shown = [row for row in rows if row["dial"] == dial and row["panel"] == kind]
        levels = sorted({row["level"] for row in rows if row["dial"] == dial})
        here = list(dict.fromkeys(row["line"] for row in shown))
        for place, line in enumerate(here):
            own, at = [row for row in shown if row["line"] == line], lines.index(line)
            shift = (place - (len(here) - 1) / 2) * 0.015 * (levels[-1] - levels[0])
            ends = [[row["estimate"] - row["low"] for row in own], [row["high"] - row["estimate"] for row in own]]
            style = style_of(at) | {"marker": marker_of(at), "markersize": 4, "capsize": 2, "linewidth": 1.2}
            places, means = [row["level"] + shift for row in own], [row["estimate"] for row in own]
            axis.errorbar(places, means, ends, label=line, **style)
        for reference in {row["reference"] for row in shown if "reference" in row}:
            axis.axhline(reference, color=PALE, linewidth=1, linestyle="--")
        axis.set_xticks(levels)
        gridded(axis, xlabel=f"{dial} (parameter of 01)", ylabel=kind if dial == dials[0] else "")
    legend_beside(panels[-1][-1])
    return figure


def attack_success_by_family(success: Mapping[str, Mapping[str, float]], held_out: Sequence[str] = ()) -> Figure:
    """Fraction of harmful prompts complied with, per wrapper family: policy name -> {family: fraction in [0, 1]}.

    Families in `held_out` (in no data that a model has read) stand apart at the bottom, with a star.
    """
    families = list(dict.fromkeys(f for row in success.values() for f in row))
    families = [f for f in families if f not in held_out] + [f for f in families if f in held_out]
    figure, axis = axes(7.5, 0.5 * len(families) + 1.6)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, max(len(success), 2)))
    for index, (policy, row) in enumerate(success.items()):
        shift = (index - (len(success) - 1) / 2) * 0.07
        known = [(100 * row[f], i + shift) for i, f in enumerate(families) if f in row]
        axis.plot(*zip(*known, strict=True), marker_of(index), color=shades[index], label=policy, markersize=6)
    name_rows(axis, [f + (" *" if f in held_out else "") for f in families])
    gridded(axis, xlim=(-3, 103), xlabel="attack success (% of harmful prompts)")
    axis.set_title("* held out" if any(f in held_out for f in families) else "")
    legend_beside(axis)
    return figure


def frontier_curves(curves: Mapping[str, Sequence], unbiased: Mapping[str, Sequence[float]]) -> Figure:
    """Attack against over-refusal while a refusal bias is swept: policy -> (shares of harmless prompts refused, shares
    of harmful ones answered), each (T,) in [0, 1]. `unbiased`: where the policy itself stands, marked."""
    figure, axis = axes(5.5, 3.8)
    for at, (name, (refused, answered)) in enumerate(curves.items()):
        axis.plot(100 * np.asarray(refused), 100 * np.asarray(answered), **style_of(at), linewidth=1.3)
        x, y = (100 * share for share in unbiased[name])
        axis.plot(x, y, marker_of(at), **style_of(at), markersize=7, markerfacecolor="white", label=name)
    gridded(axis, xlabel="safe acts refused (%)", ylabel="forbidden acts carried out (%)")
    axis.set_title("a bias from refusing nothing (upper left) to refusing all; mark: no bias", fontsize=9)
    legend_beside(axis)
    return figure


def goodness_curves(
    courses: Mapping[str, Sequence[Mapping[str, float]]], lines: Mapping[str, float], equal: float
) -> Figure:
    """True goodness against KL while policies train: policy -> looks with KL and goodness, in their order; the looks
    are marked, the last one larger. `lines`: name -> goodness, across; `equal`: the KL of the comparison, upright."""
    figure, axis = axes(7.5, 3.8)
    for at, (name, course) in enumerate(courses.items()):
        far, worth = ([look[key] for look in course] for key in ("KL", "goodness"))
        style = style_of(at) | {"marker": marker_of(at), "linewidth": 1.2}
        axis.plot(far, worth, **style, markersize=4, label=name)
        axis.plot(far[-1], worth[-1], **style, markersize=8, markerfacecolor="white")
    for name, worth in lines.items():
        axis.axhline(worth, color=INK, linewidth=1)
        axis.annotate(f"{name} ({worth:.2f})", (1, worth), (0, 2), xycoords=axis.get_yaxis_transform(), fontsize=7,
                      textcoords="offset points", ha="right")  # fmt: skip
    axis.axvline(equal, color=PALE, linewidth=1, linestyle=":", label="equal KL")
    gridded(axis, xlabel="KL to the reference (nats a token)", ylabel="balanced goodness (fraction)")
    legend_beside(axis)
    return figure


def boxes(axis, values: Sequence[Sequence[float]], places: Sequence[float], **options) -> list:
    """Horizontal boxes with whiskers from 5 to 95 % and no outliers, to be coloured by the caller."""
    style = {"orientation": "horizontal", "patch_artist": True, "sym": "", "whis": (5, 95), "positions": places}
    return axis.boxplot([np.asarray(own) for own in values], medianprops={"color": INK}, **style, **options)["boxes"]


def style_of(index: int) -> dict:
    """How the line of a figure's run or method with this number is drawn."""
    return {"color": SHADES[index % len(SHADES)], "linestyle": LINES[index % len(LINES)]}


def marker_of(index: int) -> str:
    """The marker that goes with it."""
    return MARKERS[index % len(MARKERS)]


def gridded(axis, **labels) -> None:
    """A grid behind the data, and `labels` as of `axis.set`."""
    axis.set(**labels)
    axis.grid(color=GRID, linewidth=0.5)


def name_rows(axis, names: Sequence[str]) -> None:
    """Rows 0, 1, … under their names, the first one on top."""
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()


def legend_beside(axis) -> None:
    """The legend to the right of the axis."""
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def axes(width: float, height: float):
    return subplots(figsize=(width, height))


def panels_for(count: int, columns: int, **options) -> tuple:
    """A figure and so many panels in rows of `columns`."""
    figure, panels = subplots(-(-count // columns), columns, squeeze=False, **options)
    for axis in panels.flat[count:]:
        axis.set_axis_off()
    return figure, panels.flat[:count]


def subplots(*layout, **options):
    """`plt.subplots` in our style. Not `rc_context`: in a notebook the first figure switches interactive mode on, and
    `rc_context` would switch it off again, so that only the first figure of a notebook showed."""
    before = {key: plt.rcParams[key] for key in STYLE}
    plt.rcParams.update(STYLE)
    try:
        return plt.subplots(*layout, **options)
    finally:
        plt.rcParams.update(before)


def colours(names: Sequence[str]) -> list[str]:
    """A colour for each of the categories: its own in the taxonomy; else, in turn, one that none of them has."""
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = [shade for shade in OTHERS if shade not in taken]
    others = [name for name in names if name not in COLOURS]
    return [COLOURS[name] if name in COLOURS else free[others.index(name) % len(free)] for name in names]


def series(history: Sequence[Mapping], key: str) -> tuple[list, list]:
    rows = [row for row in history if key in row and "step" in row]
    return [row["step"] for row in rows], [row[key] for row in rows]
