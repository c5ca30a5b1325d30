"""What a training run tells about itself, from its history (one row an update): figures, tables, and checks.

The figures are in the style of `evaluation.plots`; each axis has a unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import linregress

from srmir_lib.evaluation import plots
from srmir_lib.evaluation.plots import INK, PALE, gridded, marker_of, series, style_of
from srmir_lib.policies.hacking_alarm import SIGNALS, Alarm
from srmir_lib.policies.reward import MONITOR
from srmir_lib.rows import read_jsonl


def training_curves(runs: Mapping[str, Sequence[Mapping]], curves: Mapping[str, str]) -> Figure:
    """One panel a curve (key in the history -> label with unit), one line a run (name -> history), over training.

    History rows need `step`; a row without a key is skipped for that panel, a key without any row leaves an empty one.
    """
    columns = len(curves) if len(curves) <= 4 else -(-len(curves) // 2)
    lines = -(-len(curves) // columns)
    figure, panels = plots.panels_for(len(curves), columns, figsize=(3.1 * columns, 2.7 * lines))
    for axis, (key, heading) in zip(panels, curves.items(), strict=True):
        for index, (name, history) in enumerate(runs.items()):
            axis.plot(*series(history, key), label=name, **style_of(index))
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


CURVES = {
    "reward": "reward (calibrated score)",
    "kl": "KL to the reference (nats a token)",
    "completions/mean_length": "answer length (tokens)",
    "coherence/log_likelihood": "coherence (nats a token)",
}
"""What to look at while GRPO trains: key in the history -> label with unit."""


DIVERSITY = "coherence/distinct_bigrams"


def ends(history: Sequence[Mapping], key: str) -> tuple[float, float]:
    """Means of `key` over the first and over the last fifth of a run."""
    values = [row[key] for row in history if key in row]
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def both_ends(history: Sequence[Mapping]) -> dict[str, tuple[float, float]]:
    """`ends` of all that `CURVES` shows, and of the diversity; what the run did not log is left out."""
    return {key: ends(history, key) for key in (*CURVES, DIVERSITY) if any(key in row for row in history)}


def well_behaved(history: Sequence[Mapping]) -> dict[str, bool]:
    """What is expected of a healthy run: more reward, near its reference, answers as long as they were."""
    (low, high), (short, long) = ends(history, "reward"), ends(history, "completions/mean_length")
    near = max(row.get("kl", 0.0) for row in history) < 0.1
    return {"reward rose": high > low, "KL below 0.1": near, "length within a fifth": abs(long / short - 1) < 0.2}


def rising(history: Sequence[Mapping], categories: Sequence[str]) -> int:
    """How many of the monitored reward models score the policy higher at its last look than at its first."""
    looks = [[row[MONITOR + name] for row in history if MONITOR + name in row] for name in categories]
    return sum(seen[-1] > seen[0] for seen in looks if seen)


def is_saved(history: Sequence[Mapping], folder: Path) -> bool:
    """Whether the history in the folder of a policy is this one."""
    return read_jsonl(folder / "history.jsonl") == history


def check_grpo(history: Sequence[Mapping], folder: Path, max_steps: int) -> None:
    """An `AssertionError` that names the policy in `folder`, if its run lacks updates, did not begin as its own
    reference, stood still or ran away, lost what it was paid, or is not what was saved."""
    name = folder.name
    assert [row["step"] for row in history] == list(range(1, max_steps + 1)), f"{name}: steps are missing"
    assert history[0]["kl"] < 1e-5, f"{name}: the policy must start as its own reference"
    assert 0 < history[-1]["kl"] < 10, f"{name}: the policy did not move, or ran away"
    paid = [row for row in history if "reward" in row]
    if max_steps >= 10:
        line = linregress([row["step"] for row in paid], [row["reward"] for row in paid])
        assert line.slope > -3 * line.stderr, f"{name}: the reward that a policy follows must not fall"
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


def labelled_points(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """One marked point each, named in the legend: name -> (x, y); `intervals` of y, name -> (low, high), as lines."""
    figure, axis = plots.axes(7, 3.6)
    for index, (name, place) in enumerate(points.items()):
        if intervals:
            axis.plot([place[0]] * 2, intervals[name], color=PALE, linewidth=1.2)
        axis.plot(*place, marker_of(index), color=style_of(index)["color"], markersize=7, label=name)
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
    last.set_yscale("symlog", linthresh=2 * alarm.threshold)
    last.set_ylabel("suspicion (deviations)")
    for axis in grid[-1]:
        axis.set_xlabel("step (updates)")
    figure.legend(*last.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(histories))
    return figure
