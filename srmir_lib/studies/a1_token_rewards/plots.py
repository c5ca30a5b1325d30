"""Figures of token rewards: answers as rows of coloured tokens."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srmir_lib.conversations import redact, text_of
from srmir_lib.evaluation.plots import INK, subplots
from srmir_lib.studies.a1_token_rewards.model import TokenReward


def heat_map_of_acts(
    tokenizer,
    prompts: Sequence,
    found: Sequence[TokenReward],
    harmful: Sequence[np.ndarray],
    act: Sequence[np.ndarray],
    show_text: bool,
) -> Figure:
    """`token_heat_map` of up to eight answers that carry the asked act out, at most five forbidden ones first.

    Where none does, of the first three. `harmful`, `act`: labels as from `evaluation.acts_carried_out`. Without
    `show_text` the answers are hidden, and the prompts redacted.
    """
    bad, acted = ([i for i, label in enumerate(of) if label.any()] for of in (harmful, act))
    shown = [*bad[:5], *(i for i in acted if i not in bad)][:8] or [0, 1, 2]
    word = tokenizer.decode if show_text else lambda _: "▇"
    words = [[word([token]).strip() for token in found[i].tokens] for i in shown]
    kinds = ["forbidden" if i in bad else "allowed" if i in acted else "other" for i in shown]
    titles = [f"{kind}: {redact(text_of(prompts[i]), show_text)}" for kind, i in zip(kinds, shown, strict=True)]
    return token_heat_map(words, [found[i].mean.numpy() for i in shown], [act[i] for i in shown], titles)


def token_heat_map(
    tokens: Sequence[Sequence[str]],
    rewards: Sequence[np.ndarray],
    spans: Sequence[np.ndarray],
    titles: Sequence[str],
    width: int = 96,
) -> Figure:
    """One row an answer: its tokens as text on the colour of their reward, those of the marked span in a black frame.

    `tokens[i]`, `rewards[i]`, `spans[i]` (bool) have one entry per token; `titles[i]` stands above the row. Rows break
    after `width` characters. Red is low, blue is high, white is zero; what is below zero is underlined, for readers in
    grey. The frame and the text carry no colour.
    """
    rows = []  # (line of the figure, first character, text, reward, marked)
    line, heads = 0, []
    for own, reward, marked, title in zip(tokens, rewards, spans, titles, strict=True):
        heads.append((line, title))
        line, at = line + 1, 0
        for text, value, mark in zip(own, reward, marked, strict=True):
            if at and at + len(text) + 1 > width:
                line, at = line + 1, 0
            rows.append((line, at, text, float(value), bool(mark)))
            at += len(text) + 1
        line += 1
    norm = CenteredNorm(halfrange=max(1e-6, max(abs(value) for *_, value, _ in rows)))
    figure, axis = subplots(figsize=(9.5, 0.2 * line + 0.8))
    colours = ScalarMappable(norm, "RdBu")
    for place, at, text, value, mark in rows:
        shade = colours.to_rgba(value)
        frame = {"edgecolor": INK, "linewidth": 1.4, "zorder": 3} if mark else {"edgecolor": "white", "linewidth": 0.5}
        axis.add_patch(Rectangle((at, place), len(text) + 1, 0.9, facecolor=shade, **frame))
        ink = "white" if abs(norm(value) - 0.5) > 0.35 else INK
        middle = at + (len(text) + 1) / 2
        axis.text(
            middle, place + 0.47, text, ha="center", va="center", family="monospace", fontsize=6.5, color=ink, zorder=4
        )
        if value < 0:
            axis.plot([at + 0.4, at + len(text) + 0.6], [place + 0.8] * 2, color=ink, linewidth=0.8, zorder=4)
    for place, title in heads:
        head = textwrap.shorten(title, 110, placeholder=" …")
        shown = axis.text(0, place + 0.75, head, fontsize=7.5, color=INK)
        shown.set_in_layout(False)  # or a long one squeezes the axes
    axis.set(xlim=(0, width + 1), ylim=(line, 0))
    axis.set_axis_off()
    figure.colorbar(colours, ax=axis, label="posterior mean of the token's reward", shrink=0.7, aspect=30)
    return figure
