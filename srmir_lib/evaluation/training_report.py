"""What a training run tells about itself, from its history (one row an update) and the policy's answers: figures,
tables, and checks.

The figures are in the style of `evaluation.plots`; each axis has a unit.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import linregress, t

from srmir_lib.conversations import redact, text_of
from srmir_lib.evaluation import plots
from srmir_lib.evaluation.plots import INK, PALE, gridded, marker_of, series, style_of
from srmir_lib.models.generation import generate
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.goodness import BALANCED, HARMFUL, HARMLESS
from srmir_lib.policies.hacking_alarm import SIGNALS, Alarm
from srmir_lib.policies.refresh import REFRESHED
from srmir_lib.policies.reward import MONITOR
from srmir_lib.rows import read_jsonl
from srmir_lib.statistics import bootstrap_interval


def training_curves(
    runs: Mapping[str, Sequence[Mapping]], curves: Mapping[str, str], ceilings: Mapping[str, float] | None = None
) -> Figure:
    """One panel a curve (key in the history -> label with unit), one line a run (name -> history), over training; in
    the panels of `ceilings` (key -> value) a dotted line across, what acting on all beliefs would reach.

    History rows need `step`; a row without a key is skipped for that panel, a key without any row leaves an empty one.
    """
    columns = len(curves) if len(curves) <= 4 else -(-len(curves) // 2)
    lines = -(-len(curves) // columns)
    figure, panels = plots.panels_for(len(curves), columns, figsize=(3.1 * columns, 2.7 * lines))
    for axis, (key, heading) in zip(panels, curves.items(), strict=True):
        for index, (name, history) in enumerate(runs.items()):
            axis.plot(*series(history, key), label=name, **style_of(index))
        if key in (ceilings or {}):
            axis.axhline(ceilings[key], color=INK, linestyle=":", linewidth=1.2)
            axis.text(
                0.02, ceilings[key], "acts on beliefs", transform=axis.get_yaxis_transform(), va="bottom", fontsize=7
            )
        gridded(axis, xlabel="step (updates)", title=heading)
    if len(runs) > 1:
        panels[0].legend(fontsize=7)
    return figure


def running_examples(prompts: Iterable[Mapping], categories: Sequence[str]) -> dict[str, list]:
    """The first test prompt of each category, of kind harmful where there is one: rows of prompt, gold_category and
    kind; a category without any is left out."""
    first = {}
    for row in sorted(prompts, key=lambda row: row["kind"] != "harmful"):
        first.setdefault(row["gold_category"], row["prompt"])
    return {name: first[name] for name in categories if name in first}


def answers_of(
    trunk: Trunk, adapters: Mapping[str, str | Path | None], prompts: Sequence, **sampling
) -> dict[str, list[str]]:
    """What each policy answers, name -> texts (N,): `adapters` name -> folder, or None for the base model itself; all
    with the same `sampling`, as of `generate`."""
    return {
        name: generate(trunk.policy(folder), trunk.tokenizer, prompts, **sampling) for name, folder in adapters.items()
    }


def side_by_side(
    examples: Mapping[str, Sequence], answers: Mapping[str, Sequence[str]], show_text: bool
) -> list[dict[str, str]]:
    """A row an example: its prompt, and each column of `answers` (name -> a text an example), all masked unless
    `show_text`."""
    texts = {"prompt": [text_of(prompt) for prompt in examples.values()]} | dict(answers)
    columns = {name: [redact(text, show_text) for text in column] for name, column in texts.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def cost_rows(
    runs: Mapping[str, Sequence[Sequence[Mapping]]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    batch_size: int,
    before: Mapping[str, tuple[int, float]],
    seed: int,
) -> list[dict]:
    """What each policy cost and what its answers earn: a row a policy of `runs`, name -> the histories of its
    trainings, one after another.

    Costs: updates, sequences (`batch_size` an update), sampled (answers drawn), tokens, seconds. `before`: name ->
    (answers drawn, seconds) where a policy was sampled before its training. `scores`: name -> {label: (N,)}; the mean
    of the first is the `reward`, with its interval `low`, `high` over prompts; the others stand under their labels.
    """
    rows = []
    for name, histories in runs.items():
        spent = [row for history in histories for row in history]
        drawn, waited = before.get(name, (0, 0.0))
        cost = {"updates": len(spent), "sequences": len(spent) * batch_size}
        cost["sampled"] = drawn + batch_size * sum("reward" in row for row in spent)
        cost["tokens"] = sum(int(history[-1]["num_tokens"]) for history in histories)
        cost["seconds"] = waited + sum(row["seconds"] for row in spent)
        first, *rest = (bootstrap_interval(values, seed=seed) for values in scores[name].values())
        earned = {"reward": first.estimate, "low": first.low, "high": first.high}
        others = zip(list(scores[name])[1:], rest, strict=True)
        rows.append({"name": name} | cost | earned | {label: mean.estimate for label, mean in others})
    return rows


def pleases(one: Sequence[float], other: Sequence[float], seed: int) -> bool | None:
    """Whether the first of two policies earns more than the second, (N,) each, on the same prompts; None if an interval
    of the difference holds zero."""
    difference = bootstrap_interval([a - b for a, b in zip(one, other, strict=True)], seed=seed)
    return None if difference.low <= 0 <= difference.high else difference.low > 0


LENGTH = "completions/mean_length"


CURVES = {
    "reward": "reward (calibrated score)",
    "kl": "KL to the reference (nats a token)",
    LENGTH: "answer length (tokens)",
    "coherence/log_likelihood": "coherence (nats a token)",
}
"""What to look at while GRPO trains: key in the history -> label with unit."""


WORTH = {
    "reward": "reward (calibrated score)",
    HARMFUL: "goodness, harmful prompts",
    HARMLESS: "goodness, harmless prompts",
    BALANCED: "balanced goodness (their mean)",
}
"""The same where the truth is at hand: what a policy is paid, and what it is worth."""


DIVERSITY, CUT = "coherence/distinct_bigrams", "completions/clipped_ratio"
"""Different pairs of words, and the share of answers that their length cuts off."""


VERDICTS = {True: "as expected", False: "not as expected", None: "not told apart"}
"""What is printed of an expectation that held, did not, or cannot be told from none."""


def ends(history: Sequence[Mapping], key: str) -> tuple[float, float]:
    """Means of `key` over the first and over the last fifth of a run."""
    values = [row[key] for row in history if key in row]
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def both_ends(history: Sequence[Mapping]) -> dict[str, tuple[float, float]]:
    """`ends` of all that `CURVES` shows, of diversity, cut answers and true goodness; what the run did not log is left
    out."""
    shown = (*CURVES, DIVERSITY, CUT, BALANCED)
    return {key: ends(history, key) for key in shown if any(key in row for row in history)}


def of_one_reward(history: Sequence[Mapping]) -> list[Mapping]:
    """The rows before the reward models were refreshed, if they were: later ones have another reward."""
    return [row for row in history if REFRESHED not in row]


def rises(values: Sequence[float]) -> bool | None:
    """Whether values (N,) rise with their number, by the sign of the least-squares slope; None if its t interval of
    95 % holds zero, as it does of two: every update has other prompts, and what can be earned differs between them."""
    if len(values) < 3:
        return None
    line = linregress(range(len(values)), values)
    far = t.ppf(0.975, len(values) - 2) * line.stderr
    return None if abs(line.slope) <= far else bool(line.slope > 0)


def well_behaved(history: Sequence[Mapping]) -> dict[str, bool | None]:
    """What is expected of a healthy run: more reward (None: not told apart), near its reference, answers as long as
    they were."""
    rose, (short, long) = rises([row["reward"] for row in of_one_reward(history)]), ends(history, LENGTH)
    near = max(row.get("kl", 0.0) for row in history) < 0.1
    return {"reward rose": rose, "KL never at 0.1": near, "length within a fifth": abs(long / short - 1) < 0.2}


def rising(history: Sequence[Mapping], categories: Sequence[str]) -> int:
    """How many of the monitored reward models score the policy higher at its last look than at its first."""
    looks = [[row[MONITOR + name] for row in history if MONITOR + name in row] for name in categories]
    return sum(seen[-1] > seen[0] for seen in looks if seen)


def is_saved(history: Sequence[Mapping], folder: Path) -> bool:
    """Whether the history in the folder of a policy is this one."""
    return read_jsonl(folder / "history.jsonl") == history


def check_grpo(history: Sequence[Mapping], folder: Path, max_steps: int) -> None:
    """An `AssertionError` that names the policy in `folder`, if its run lacks updates, did not begin as its own
    reference, stood still or ran away, or is not what was saved. Whether it learned is no check but a result."""
    name = folder.name
    assert [row["step"] for row in history] == list(range(1, max_steps + 1)), f"{name}: steps are missing"
    assert history[0]["kl"] < 1e-5, f"{name}: the policy must start as its own reference"
    assert 0 < history[-1]["kl"] < 10, f"{name}: the policy did not move, or ran away"
    assert is_saved(history, folder), f"{name}: the saved history differs"


def grpo_metrics(histories: Mapping[str, Sequence[Mapping]]) -> dict[str, float]:
    """Seconds and both ends of all curves, for `metrics.json`: name of the policy -> history."""
    metrics = {}
    for name, history in histories.items():
        metrics[f"seconds_{name}"] = sum(row["seconds"] for row in history)
        for key, values in both_ends(history).items():
            short = key.split("/")[-1]
            metrics |= {f"{short}_{end}_{name}": value for end, value in zip(("start", "end"), values, strict=True)}
    return metrics


UNITS = ("(calibrated score)", "(tokens)", "(nats a token)", "(fraction)", "(nats a token)")
"""Of the alarm's signals, in their order."""


def monitor_curves(history: Sequence[Mapping]) -> Figure:
    """Scores of reward models over training, one line per category: keys `MONITOR + category` in the history.

    The models that do not reward a prompt are held-out detectors of reward hacking: watch for lines that part.
    """
    names = plots.ordered({key[len(MONITOR) :] for row in history for key in row if key.startswith(MONITOR)})
    figure, axis = plots.axes(7, 3.2)
    for index, (name, shade) in enumerate(zip(names, plots.colours(names), strict=True)):
        style = style_of(index) | {"color": shade, "label": plots.label(name)}
        axis.plot(*series(history, MONITOR + name), **style)
    gridded(axis, xlabel="step (updates)", ylabel="calibrated score")
    if names:
        plots.legend_beside(axis)
    return figure


def router_and_sum(prompt: str, answer: str, scores: Mapping[str, float], routed: str) -> Figure:
    """The two strategies on one answer to a prompt, side by side: left the router's choice of a reward model, right the
    sum of all with equal weights. `scores`: category -> calibrated score; `routed`: a category, or unknown."""
    figure, panels = plots.subplots(1, 2, figsize=(9.5, 0.42 * len(scores) + 1.9))
    figure.suptitle("\n".join(textwrap.fill(text, 100) for text in (f"x: {prompt}", f"y: {answer}")), fontsize=9)
    figure.supxlabel("scores of one answer (calibrated, in deviations)", fontsize=9)
    middle, known, (left, right) = (len(scores) - 1) / 2, routed in scores, (2.4, 7.8)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": INK}
    for axis, routes in zip(panels, (True, False), strict=True):
        asked = [routed] if routes and known else list(scores)
        axis.set(xlim=(-0.2, 10.6), ylim=(len(scores) - 0.4, -0.6))
        axis.set_title(
            ("the router asks one" if known else "the router asks all") if routes else "a weighted sum asks all"
        )
        axis.set_axis_off()
        reward = sum(scores[name] for name in asked) / len(asked)
        for place, text in ((0.7, "router" if routes else f"1/{len(scores)} each"), (9.6, f"R = {reward:+.2f}")):
            axis.text(place, middle, text, ha="center", va="center", bbox=box)
        for row, ((name, score), shade) in enumerate(zip(scores.items(), plots.colours(list(scores)), strict=True)):
            heard = name in asked
            edge = {"edgecolor": shade, "linewidth": 2.0} if heard else {"edgecolor": PALE, "linestyle": ":"}
            words = {"color": INK if heard else PALE, "fontsize": 8, "ha": "center", "va": "center"}
            axis.add_patch(Rectangle((left, row - 0.34), right - left, 0.68, facecolor="white", **edge))
            axis.text((left + right) / 2, row, f"{plots.label(name)}  {score:+.2f}", **words)
            for start, end in (((1.7, middle), (left, row)), ((right, row), (8.5, middle))) if heard else ():
                axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.9})
    return figure


def labelled_points(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """One marked point each, named in the legend: name -> (x, y); `intervals` of y, name -> (low, high), as lines;
    `lines`: name -> y, dotted across."""
    figure, axis = plots.axes(7, 3.6)
    for index, (name, place) in enumerate(points.items()):
        if intervals:
            axis.plot([place[0]] * 2, intervals[name], color=PALE, linewidth=1.2)
        axis.plot(*place, marker_of(index), color=style_of(index)["color"], markersize=7, label=name)
    for name, height in (lines or {}).items():
        axis.axhline(height, color=INK, linestyle=":", linewidth=1.2, label=name)
    axis.margins(x=0.1, y=0.15)
    gridded(axis, xlabel=xlabel, ylabel=ylabel)
    plots.legend_beside(axis)
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
        axis.set_ylabel(f"{signal}\n{unit}")
        if signal in alarm.mean:
            mean, spread = alarm.mean[signal], 2 * alarm.std[signal]
            axis.axhspan(mean - spread, mean + spread, color=plots.GRID, alpha=0.6, linewidth=0)
    last.axhline(alarm.threshold, color=INK, linewidth=0.8, linestyle=":")
    if max(max(line.get_ydata()) for line in last.lines) > 4 * alarm.threshold:  # else all of it fits
        last.set_yscale("symlog", linthresh=2 * alarm.threshold)
    last.set_ylabel("suspicion (deviations)")
    for axis in grid[-1]:
        axis.set_xlabel("step (updates)")
    figure.legend(*last.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(histories))
    return figure
