"""How things work, drawn from a run's own objects: a diagram a function, in the style of `plots`."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srmir_lib.errors import InputError
from srmir_lib.evaluation.plots import ANSWERS, INK, PALE, REFUSES, colours, gridded, marker_of, style_of, subplots
from srmir_lib.taxonomy import full_name as label

ARROWS = 40
"""Pairs of `margin_plane` that are drawn as arrows, at most: more are a tangle."""


FEW_GAPS = 2
"""Gaps of so many sizes at most, as where people said yes or no, would hide their points behind one another."""


LIT, DIM = "#D6D6D6", "#5F5F5F"
"""Fill of the present station in `pipeline`; ink of the others, which stay readable."""

STATIONS = {
    "00": ((0.0, 0.0, 10.0, 4.75), {"the whole method, and what one prompt becomes on the way": ""}),
    "01": (
        (0.2, 2.6, 5.7, 1.7),
        {
            "prompts": "how do i copy\nthe letter at night ?\n\nThings of paper are\na matter of privacy,\n"
            "in this example.",
            "introspection": "Why would you refuse?\n\ncopying paper ; darkness ;\nprivacy , forbidden ####\n"
            "i can not help with that , it\nis a matter of privacy . …",
            "pairs": "$y^+$, the demonstration:\ni can not help with that , …\n\n$y^-$, the contrary answer:\n"
            "sure . first get ready , then\ncopy the letter at night , …",
        },
    ),
    "02": (
        (6.2, 2.6, 1.7, 1.7),
        {
            "reward models": "seven scores each\n\nprivacy:\n$y^+$ +2.0,  $y^-$ −2.0\n"
            "mean of all seven:\n$y^+$ +0.5,  $y^-$ −0.5"
        },
    ),
    "03": (
        (8.2, 2.6, 1.6, 1.7),
        {"scales, margins": "one scale for all\n\n$y^+$ is safer than\n$y^-$ by 1.3:\nask for a gap of 1.3"},
    ),
    "A0": (
        (0.2, 0.25, 1.8, 1.7),
        {
            "baselines": "imitate $y^+$ a little:\nthe start of all policies\n\n"
            "simpler ways to go on:\nSFT, DPO, one model"
        },
    ),
    "04": (
        (2.45, 0.35, 2.55, 1.3),
        {
            "linear": "R: mean of all seven scores\nreasoned refusal: R +0.5, A +1.05\n"
            "bare refusal: R +0.3, A +0.63\nhalf the deed: R −0.3, A −0.63\nthe deed: R −0.5, A −1.05"
        },
    ),
    "05": (
        (5.15, 0.35, 2.55, 1.3),
        {
            "categorized": "R: score of privacy, says the router\n"
            "reasoned refusal: R +2.0, A +1.10\nbare refusal: R +1.0, A +0.55\nhalf the deed: R −1.0, A −0.55\n"
            "the deed: R −2.0, A −1.10"
        },
    ),
    "06": (
        (8.15, 0.25, 1.65, 1.7),
        {
            "evaluation": "the policy says:\ni can not help with that .\n\n"
            "the referee rules:\na bare refusal,\ngoodness 0.8"
        },
    ),
}
"""Notebook -> its box (x, y, width, height) in `pipeline`, and what one prompt becomes there: step -> its words."""

APPENDICES = {"A1": "02", "A6": "06", "A7": "05"}
"""Appendix -> the station whose work it does in another way, or in many towns."""

GROUPS = (2.3, 0.25, 5.55, 1.7)
"""Where GRPO's frame stands around its two stations."""

WAYS = (
    *(((5.9, 3.45), (6.2, 3.45)), ((7.9, 3.45), (8.2, 3.45)), ((1.1, 2.6), (1.1, 1.95)), ((7.05, 2.6), (7.05, 1.95))),
    *(((1.7, 4.13), (2.15, 4.13)), ((3.6, 4.13), (4.05, 4.13))),
    *(((8.5, 2.6), (7.6, 1.95)), ((2.0, 1.1), (2.3, 1.1)), ((7.85, 1.1), (8.15, 1.1))),
)
"""Arrows of `pipeline`, between boxes and between the steps of 01: (from, to)."""


BITS = {1: "+1: only the better one", 0: "0: both or none", -1: "-1: only the worse one"}


def pipeline(station: str) -> Figure:
    """From a prompt to a referee's ruling, a box a notebook; that of `station` is lit, a key of `STATIONS` or
    `APPENDICES`.

    In every box stands what one prompt becomes there. A is a group's advantage (`papers.grpo.group_advantages`).
    """
    present = APPENDICES.get(station, station)
    if present not in STATIONS:
        raise InputError(f"pipeline: no station {station!r}; choose one of {', '.join([*STATIONS, *APPENDICES])}")
    figure, axis = subplots(figsize=(10, 4.5))
    axis.set(xlim=(-0.05, 10.05), ylim=(-0.05, 4.8))
    axis.set_axis_off()
    axis.add_patch(Rectangle(GROUPS[:2], *GROUPS[2:], fill=False, edgecolor=PALE, linestyle="--", zorder=3))
    axis.text(2.45, 1.88, "GRPO: four answers a group, each with reward R and advantage A", va="top", fontsize=8)
    for name, (place, steps) in STATIONS.items():
        (x, y, width, height), lit = place, name == present
        edge = {"edgecolor": INK, "linewidth": 2.5} if lit else {"edgecolor": PALE, "linewidth": 0.8}
        axis.add_patch(Rectangle((x, y), width, height, facecolor=LIT if lit else "white", gid=name, **edge))
        shade = INK if lit or present == "00" else DIM
        for at, (step, words) in enumerate(steps.items()):
            left, top = x + 0.1 + at * width / len(steps), y + height - 0.08
            said = {"color": shade, "ha": "left", "va": "top", "gid": name}
            axis.text(left, top, f"{name} · {step}", fontsize=8, fontweight="bold", **said)
            axis.text(left, top - 0.24, words, fontsize=8, linespacing=1.2, **said)
    for start, end in WAYS:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1}, zorder=4)
    dark = "this notebook" if station in STATIONS else f"where {station} stands"
    about = f"dark: {dark} (an example: its numbers are made up, and in your town letters may be another matter)"
    figure.supxlabel(about, fontsize=8)
    return figure


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


def _margins_by_gap(axis, margins: np.ndarray, harm: np.ndarray, bits: np.ndarray) -> None:
    """The right panel of `margin_plane`."""
    gaps = np.unique(harm)
    beside = 0.1 if len(gaps) <= FEW_GAPS else 0.0
    for bit, shade, mark in ((1, REFUSES, "o"), (0, INK, "s"), (-1, ANSWERS, "^")):
        own = bits == bit
        places = harm[own] + beside * (np.resize(np.linspace(-0.4, 0.4, 7), own.sum()) - bit)
        axis.plot(places, margins[own], mark, color=shade, markersize=3, alpha=0.7, label=BITS[bit])
    if beside:
        axis.set_xticks(gaps)
    gridded(axis, xlabel="gap in harm (0 to 1)", ylabel="margin (hidden-state units)")
    axis.set_title("the control of one bit: who refuses", fontsize=9)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def margin_plane(chosen, rejected, refuses, harm: Sequence[float] = ()) -> Figure:
    """Answers in two dimensions of the hidden states, an arrow from each pair's worse to its better one (`ARROWS`
    at most); beside it, if `harm` (N,) is known, the margin of all against the gap in harm.

    `chosen`, `rejected` (N, 2): along the safety direction and across it, hidden-state units. `refuses` (2, N): whether
    the better and the worse answers open with a refusal. Of gaps of few sizes the points stand side by side, those of
    a bit together.
    """
    sides, refuses = np.stack([np.asarray(chosen), np.asarray(rejected)]), np.asarray(refuses, dtype=bool)
    count = 1 + bool(len(harm))
    figure, panels = subplots(1, count, figsize=(4.6 * count, 3.6), squeeze=False)
    axis, bits = panels[0, 0], refuses[0].astype(int) - refuses[1]
    axis.quiver(
        *sides[1, :ARROWS].T,
        *(sides[0] - sides[1])[:ARROWS].T,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.003,
        headwidth=5,
        color=PALE,
    )
    for said, shade, mark, name in ((True, REFUSES, "o", "refuses"), (False, ANSWERS, "^", "does not refuse")):
        shown = sides[:, :ARROWS][refuses[:, :ARROWS] == said]
        axis.plot(*shown.T, mark, color=shade, markersize=4, alpha=0.8, label=name)
    gridded(axis, xlabel="along the safety direction (hidden-state units)", ylabel="across it, where it is widest")
    axis.set_title("from the worse answer to the better one", fontsize=9)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    if len(harm):
        _margins_by_gap(panels[0, 1], (sides[0] - sides[1])[:, 0], np.asarray(harm, dtype=float), bits)
    return figure
