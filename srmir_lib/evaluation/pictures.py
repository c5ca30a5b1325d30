"""How things work, drawn from a run's own objects: a diagram a function, in the style of `plots`."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srmir_lib.evaluation.plots import INK, PALE, colours, gridded, label, marker_of, style_of, subplots

REFUSES, ANSWERS = "#0072B2", "#D55E00"


BITS = {1: "+1: only the better one", 0: "0: both or none", -1: "-1: only the worse one"}


def probe_diagram(text: str, questions: Mapping[str, str], mask) -> Figure:
    """A text that is read once, the questions beside it, and below who sees whom.

    `questions`: category key -> question; `mask` (K m, T + K m): whether a token of the questions (row) sees a token of
    the text or of the questions (column), as of `block_mask`.
    """
    mask, count = np.asarray(mask, dtype=bool), len(questions)
    length = mask.shape[1] - mask.shape[0]
    figure, (axis, below) = subplots(2, 1, figsize=(8, 7), height_ratios=(2, 3))
    width, gap = 0.5, 0.1  # of the text's box and of the arrows, of the panel
    axis.add_patch(Rectangle((0, 0), width, count, facecolor="#EEEEEE", edgecolor=INK))
    axis.text(width / 2, count / 2, textwrap.fill(text, 42), ha="center", va="center", fontsize=8)
    for row, (name, shade) in enumerate(zip(questions, colours(list(questions)), strict=True)):
        place = width + gap, count - row - 0.9
        axis.add_patch(Rectangle(place, 1 - sum((width, gap)), 0.8, facecolor="white", edgecolor=shade, linewidth=2))
        axis.text(
            (1 + sum((width, gap))) / 2,
            place[1] + 0.4,
            textwrap.fill(questions[name], 36),
            ha="center",
            va="center",
            fontsize=7,
        )
        axis.annotate(
            "", (place[0], place[1] + 0.4), (width, count / 2), arrowprops={"arrowstyle": "->", "color": PALE}
        )
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.1, count + 0.7), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    for middle, said in (
        (width / 2, "read once; keys and values stay"),
        (0.8, "a question each, with its own weights"),
    ):
        axis.text(middle, count + 0.2, said, ha="center", va="bottom", fontsize=9)
    below.imshow(np.where(mask, 0.35, 1.0), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for at in np.arange(count) * mask.shape[0] / count - 0.5:
        below.axhline(at, color=PALE, linewidth=0.5)
        below.axvline(length + at, color=PALE, linewidth=0.5)
    middles = (np.arange(count) + 0.5) * mask.shape[0] / count - 0.5
    below.set_yticks(middles, [label(name) for name in questions])
    below.set_xticks([length / 2, *(length + middles)], ["the text", *(str(at + 1) for at in range(count))])
    below.set(xlabel="seen (tokens of the text, then of the questions)", ylabel="who looks", title="dark: sees it")
    return figure


def loss_curves(gaps: Sequence[float], losses: Mapping[str, Sequence[float]]) -> Figure:
    """Losses of one pair against its reward gap (N,): name -> (N,), each with a mark where it is least, if that is not
    at an end."""
    figure, axis = subplots(figsize=(6.5, 3.2))
    for at, (name, values) in enumerate(losses.items()):
        axis.plot(gaps, values, label=name, **style_of(at))
        if 0 < (least := int(np.argmin(values))) < len(values) - 1:
            axis.plot(gaps[least], values[least], marker_of(at), color=style_of(at)["color"])
    gridded(axis, xlabel="gap between the better and the worse answer (score units)", ylabel="loss (nats)")
    axis.axvline(0, color=PALE, linewidth=0.8)
    axis.legend(fontsize=7)
    return figure


def margin_plane(chosen, rejected, refuses, harm: Sequence[float] = ()) -> Figure:
    """Answers in two dimensions of the hidden states, an arrow from each pair's worse to its better one; beside it, if
    `harm` (N,) is known, the margin against the true gap in harm.

    `chosen`, `rejected` (N, 2): along the safety direction and across it, hidden-state units. `refuses` (2, N): whether
    the better and the worse answers open with a refusal.
    """
    sides, refuses = np.stack([np.asarray(chosen), np.asarray(rejected)]), np.asarray(refuses, dtype=bool)
    count = 1 + bool(len(harm))
    figure, panels = subplots(1, count, figsize=(4.6 * count, 3.6), squeeze=False)
    axis, bits = panels[0, 0], refuses[0].astype(int) - refuses[1]
    axis.quiver(
        *sides[1].T,
        *(sides[0] - sides[1]).T,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.003,
        headwidth=5,
        color=PALE,
    )
    for said, shade, mark, name in ((True, REFUSES, "o", "refuses"), (False, ANSWERS, "^", "does not refuse")):
        axis.plot(*sides[refuses == said].T, mark, color=shade, markersize=3, alpha=0.7, label=name)
    gridded(axis, xlabel="along the safety direction (hidden-state units)", ylabel="across it, where it is widest")
    axis.set_title("from the worse answer to the better one", fontsize=9)
    axis.legend(fontsize=7)
    for bit, shade, mark in ((1, REFUSES, "o"), (0, INK, "s"), (-1, ANSWERS, "^")) if len(harm) else ():
        own = bits == bit
        margins = (sides[0] - sides[1])[own, 0]
        panels[0, 1].plot(np.asarray(harm)[own], margins, mark, color=shade, markersize=3, alpha=0.7, label=BITS[bit])
    if len(harm):
        gridded(panels[0, 1], xlabel="true gap in harm (0 to 1)", ylabel="margin (hidden-state units)")
        panels[0, 1].set_title("the control of one bit: who refuses", fontsize=9)
        panels[0, 1].legend(fontsize=7)
    return figure
