"""What it costs to score with K reward models: the limits as formulas, and a clock and a scale to hold them against.

`separate`: K classifiers, each reading every prompt and completion. `shared`: one trunk that reads each prompt once
and each completion once, and K probes. Two counts: tokens (each costs alike, the rule of thumb) and multiply-adds
(attention, the adapters, and the last layer that stops early are counted for what they are).
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from srmir_lib.errors import InputError
from srmir_lib.settings.cost import Shape


@dataclass(frozen=True)
class Load:
    """What is scored: a group of completions to one prompt, by K models, each with a probe of m tokens."""

    prompt: int  # P, tokens
    completion: int  # C, tokens (their mean, where lengths are mixed)
    group: int  # G
    models: int  # K
    probe: int  # m, tokens


SCORING = {
    "linear_vs_seven": ("linear", "seven"),
    "linear_vs_tuned": ("linear", "tuned"),
    "routed_vs_seven": ("routed", "seven"),
    "routed_monitored_vs_seven": ("monitored", "seven"),
    "categorized_over_linear": ("watched", "linear"),
    "routed_over_linear": ("routed", "linear"),
    "single_over_one": ("alone", "one"),
    "linear_over_itself": ("again", "linear"),
}
"""What is compared with what: metric -> (ours, the peer), by their names in `contestants.contestants`."""


class Spread(NamedTuple):
    """The median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float


def separate_tokens(load: Load) -> int:
    """K G (P + C): tokens that K classifiers read."""
    return load.models * load.group * (load.prompt + load.completion)


def shared_tokens(load: Load, asked: int | None = None, share: bool = True) -> int:
    """P + G C + G k m: tokens that one trunk and k probes read; k = K, or `asked` (1 when each text has its own model).

    Without sharing (`share=False`) the prompt is read with every completion: G (P + C + k m).
    """
    probes = load.group * load.probe * (load.models if asked is None else asked)
    return (load.prompt if share else load.group * load.prompt) + load.group * load.completion + probes


def shape_of(config) -> Shape:
    """The numbers of a decoder with gated feed-forward layers, by its configuration."""
    return Shape(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
    )


def layer_work(shape: Shape, new: int, seen: int = 0) -> float:
    """Multiply-adds of one layer for `new` tokens after `seen`: new (W + 2 d (seen + (new + 1) / 2)).

    W: weights of the layer. A token attends to all before it and to itself: d products for its keys, d for its values.
    """
    weights = sum(rows * columns for rows, columns in shape.linear)
    return new * (weights + 2 * shape.hidden * (seen + (new + 1) / 2))


def separate_work(load: Load, shape: Shape) -> float:
    """Multiply-adds of K classifiers."""
    return load.models * load.group * shape.layers * layer_work(shape, load.prompt + load.completion)


def shared_work(load: Load, shape: Shape, rank: int, asked: int | None = None, share: bool = True) -> float:
    """Multiply-adds of one trunk and k probes with LoRA of `rank`; the trunk's last layer ends with its keys."""
    prompts = 1 if share else load.group
    text = prompts * layer_work(shape, load.prompt) + load.group * layer_work(shape, load.completion, load.prompt)
    keys = sum(rows * columns for rows, columns in shape.linear[:3])
    trunk = (shape.layers - 1) * text + (prompts * load.prompt + load.group * load.completion) * keys
    lora = load.probe * rank * sum(rows + columns for rows, columns in shape.linear)
    probe = layer_work(shape, load.probe, load.prompt + load.completion) + lora
    return trunk + load.group * (load.models if asked is None else asked) * shape.layers * probe


def limits(load: Load, shape: Shape, rank: int) -> dict[str, tuple[float, float]]:
    """What each ratio of scoring times would be if only work took time: name -> (by tokens, by multiply-adds)."""
    one = {"asked": 1}
    alone = {"share": False}
    tokens, work = separate_tokens(load), separate_work(load, shape)
    seven = (tokens / shared_tokens(load), work / shared_work(load, shape, rank))
    routed = (tokens / shared_tokens(load, **one), work / shared_work(load, shape, rank, **one))
    single = shared_tokens(load, **alone), shared_work(load, shape, rank, **alone)
    return {
        "linear_vs_seven": seven,
        "linear_vs_tuned": seven,
        "routed_vs_seven": routed,
        "categorized_over_linear": (1.0, 1.0),
        "routed_over_linear": (seven[0] / routed[0], seven[1] / routed[1]),
        "single_over_one": (single[0] * load.models / tokens, single[1] * load.models / work),
    }


def step_limit(update: float, seven: float, ratio: float) -> float:
    """(u + s) / (u + s / r): how much faster a step gets whose scoring, s of its u + s seconds, gets r times faster."""
    return (update + seven) / (update + seven / ratio)


def decoder_weights(shape: Shape) -> int:
    """Weights of a decoder without a language-model head: embeddings, matrices, biases of q, k, v, and norms."""
    matrices = sum(rows * columns for rows, columns in shape.linear)
    biases = sum(columns for _, columns in shape.linear[:3])
    return shape.vocab * shape.hidden + shape.layers * (matrices + biases + 2 * shape.hidden) + shape.hidden


def probe_weights(shape: Shape, rank: int, models: int) -> int:
    """K (L r sum(in + out) + d): weights of K adapters of `rank` on every matrix, and K heads."""
    return models * (shape.layers * rank * sum(rows + columns for rows, columns in shape.linear) + shape.hidden)


def rank_within(shape: Shape, models: int, ratio: float, width: int) -> int:
    """The largest rank whose adapters, in float32, keep `models` of ours within `ratio` times a decoder.

    `width`: bytes of each of the decoder's weights. 0 if no rank is small enough.
    """
    spare = (ratio - 1) * width * decoder_weights(shape) / 4
    one = probe_weights(shape, 1, models) - models * shape.hidden  # without the heads, which have no rank
    return max(0, int((spare - models * shape.hidden) // one))


def race(runners: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every runner in every round, {name: [rounds]}.

    All run in every round, each time another one first, so that whatever slows the machine down slows all of them. One
    more round goes before, unrecorded.
    """
    if rounds < 1:
        raise InputError(f"rounds: {rounds}; at least one is needed")
    names, seconds = list(runners), {name: [] for name in runners}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            start = time.perf_counter()
            runners[name]()
            _wait(device)
            seconds[name] += [time.perf_counter() - start] if turn else []
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """slow / fast round by round: median and quartiles of the ratios, not the ratio of the medians."""
    return spread(np.asarray(slow) / np.asarray(fast))


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    return Spread(*(float(np.quantile(values, at)) for at in (0.5, 0.25, 0.75)))


def first_within(accuracies: Mapping[str, Sequence[float]], tolerance: float) -> dict[str, int]:
    """Where each of several trainings could have stopped: the first place whose accuracy is within `tolerance` of what
    all of them reach, the lowest of their best."""
    target = min(max(values) for values in accuracies.values()) - tolerance - 1e-9
    return {name: next(at for at, value in enumerate(of) if value >= target) for name, of in accuracies.items()}


def table_row(
    metric: str,
    ours: Sequence[float] | float | None,
    peer: Sequence[float] | float | None,
    value: Spread,
    goal: float | None,
    limit: tuple[float, float] | None = None,
) -> dict:
    """One line of the study's table; of several seconds the median. `limit`: by tokens, by multiply-adds.

    Reached: at least the goal where the metric counts "times faster" (its name says `_vs_`), at most the goal else.
    """
    both = {name: None if side is None else float(np.median(side)) for name, side in (("ours", ours), ("peer", peer))}
    tokens, work = limit if limit is not None else (None, None)
    row = {"metric": metric, **both, **value._asdict(), "limit, tokens": tokens, "limit, work": work, "goal": goal}
    reached = goal is not None and (value.median >= goal if "_vs_" in metric else value.median <= goal)
    return row | {"reached": "" if goal is None else "yes" if reached else "no"}


def scoring_rows(
    seconds: Mapping[str, Sequence[float]],
    limit: Mapping[str, tuple[float, float]],
    goals: Mapping[str, float],
    suffix: str = "",
) -> list[dict]:
    """The lines of the table that compare seconds of scoring: what `race` measured of `contestants.contestants`."""
    rows = []
    for metric, (own, peer) in SCORING.items():
        value = ratio(seconds[peer], seconds[own]) if "_vs_" in metric else ratio(seconds[own], seconds[peer])
        goal, most = goals.get(metric), limit.get(metric)
        rows.append(table_row(metric + suffix, seconds[own], seconds[peer], value, goal, most))
    return rows


def own_model_rows(
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    tokens: Mapping[str, int],
    models: int,
    probe: int,
    slack: float,
) -> list[dict]:
    """The lines that hold K scores on the base model itself against its own forward, 1 + K m / T by tokens: what
    `scores_on_own_model` measured of texts of T `tokens`, both by name; the goal is `slack` times the limit."""
    rows = []
    for name, sides in seconds.items():
        limit, value = 1 + models * probe / tokens[name], ratio(sides["scores"], sides["forward"])
        metric = f"scores_over_forward_{name}"
        rows.append(table_row(metric, sides["scores"], sides["forward"], value, slack * limit, (limit, None)))
    return rows


def in_words(rows: Sequence[Mapping], about: Mapping[str, str]) -> list[dict[str, str]]:
    """The table as text: behind each metric what it is (`about`, by the beginning of its name), both sides with their
    unit, and on which side of the goal it should lie."""
    shown = []
    for row in rows:
        text = {
            key: "" if value is None else f"{value:.4g}" for key, value in row.items() if not isinstance(value, str)
        }
        what = next((words for name, words in about.items() if row["metric"].startswith(name)), "")
        unit = "bytes" if row["metric"].startswith(("weights", "peak")) else "s"
        sides = {side: f"{text[side]} {unit}" if text[side] else "" for side in ("ours", "peer")}
        goal = {"goal": text["goal"] and ("≥ " if "_vs_" in row["metric"] else "≤ ") + text["goal"]}
        shown.append({"metric": row["metric"], "what": what} | text | sides | goal | {"reached": row["reached"]})
    return shown


def rank_flips(scores: torch.Tensor, other: torch.Tensor) -> int:
    """Pairs of texts that two scorers put in opposite order, over all models: both (N, K)."""
    left, right = (table.unsqueeze(0) - table.unsqueeze(1) for table in (scores.double(), other.double()))
    return int((left * right < 0).sum()) // 2


def peak_bytes(build: Callable, rows: int, *arguments) -> int:
    """Memory that scoring `rows` rows takes at its peak, above what the models take, in a process of its own.

    `build(*arguments)` makes the models there and returns a function of a number of rows; that one writes the texts and
    returns a call that scores them, which is all that counts. On CUDA what torch allocates is counted, else the
    resident memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_peak, build, rows, arguments).result()


def _peak(build: Callable, rows: int, arguments: tuple) -> int:
    run = build(*arguments)(rows)
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with _PeakMemory() as peak:
        run()
    return peak.most - peak.before


class _PeakMemory:
    """The most resident memory while this lasts, in bytes: Linux's own high-water mark (VmHWM); elsewhere the largest
    of a thousand samples a second, which misses short peaks, and is the more likely to meet one the longer it lasts."""

    def __enter__(self):
        self.before, self.watcher = psutil.Process().memory_info().rss, None
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the mark begins anew
        except OSError:
            self.most, self.done = self.before, threading.Event()
            self.watcher = threading.Thread(target=self._watch)
            self.watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if self.watcher is None:
            status = Path("/proc/self/status").read_text()
            self.most = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
        else:
            self.done.set()
            self.watcher.join()

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.most = max(self.most, psutil.Process().memory_info().rss)


def _wait(device: str) -> None:
    """CUDA runs behind the clock's back: let it finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
