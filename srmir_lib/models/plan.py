"""`srmir plan`: memory and time of a preset on a real model, before a weight is loaded; what cannot fit is refused.

Counted from the model's shape, the parameters of the notebooks, and how fast this machine multiplies matrices, which is
measured for a moment. How long texts are is not known before 01 has run, so they are taken to be as long as `PROMPT`
says and as answers may become. How much of the measured rate reading, training and sampling reach was measured with one
model on one processor (`SHARE`), and no whole run was held against a plan, so a plan is of orders of magnitude.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from transformers import AutoModelForCausalLM

from srmir_lib.errors import InputError
from srmir_lib.models.kv_cache import numbers_a_token
from srmir_lib.models.loading import config_of, pick_device, precision, quiet

PROMPT = 100
"""Tokens of a prompt in its template, as assumed."""

ASSUMED = f"prompts of {PROMPT} tokens and answers as long as they may be are assumed; orders of magnitude only"

WORKED = 400
"""The same with worked examples and the introspective question around it."""

QUESTION = 16
"""Tokens of a probe's question."""

CATEGORIES = 7

HELPFUL = 200
"""Answers of people that help, whose likelihood 06 reads under each policy."""

LABELLED = {"train": 3200, "held": 3400}
"""Answers that people labelled, which 02 reads with a chat model: once those that teach, the others for their states
and for three questions: of the model in charge, of the single one, and what the chat model says itself."""

SHARE = {"read": 0.8, "trained": 0.7, "sampled": 0.2}
"""Of the measured rate, what reading, training and sampling reach: attention, adapters, optimizer and Python are not
counted in the work, and a sampled token reads all weights for little. Rounded down: SmolLM2-135M in single precision
reached .91, .80 and .24 (no units for bfloat16; 8 texts of 160 tokens, 4 to train on, 32 answers of 80)."""

BASE = 1.2e9
"""Bytes of Python and its libraries."""

KEPT = 16
"""Numbers that a training keeps of a token in a layer for its way back, in widths of the model; none but one with
gradient checkpointing."""


@dataclass(frozen=True)
class Size:
    """Shape of a causal model: all its `weights`, `layers`, `width`, `vocabulary`, and how many numbers a token leaves
    in the KV cache."""

    weights: int
    layers: int
    width: int
    vocabulary: int
    kv: int


@dataclass(frozen=True)
class Work:
    """What a notebook does, in tokens that are `read`, `trained` on and `sampled`, and the bytes that it `holds` beside
    the weights, at most."""

    read: float = 0
    trained: float = 0
    sampled: float = 0
    holds: float = 0

    def __add__(self, other: "Work") -> "Work":
        sums = (getattr(self, name) + getattr(other, name) for name in ("read", "trained", "sampled"))
        return Work(*sums, max(self.holds, other.holds))

    def operations(self, weights: int) -> dict[str, float]:
        """Multiplications and additions, by kind: two a weight and token, three times as many on the way back too."""
        return {name: getattr(self, name) * weights * (6 if name == "trained" else 2) for name in SHARE}


def size_of(model: str) -> Size:
    """The shape of a causal model by id or folder; its weights are counted, not loaded."""
    config = config_of(model)
    with torch.device("meta"), quiet():
        weights = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_config(config).parameters())
    text = config.get_text_config()
    return Size(weights, text.num_hidden_layers, text.hidden_size, text.vocab_size, numbers_a_token(config))


def training(tokens: float, updates: float, told: Mapping, length: int, size: Size, number: int) -> Work:
    """`updates` of an adapter, of so many `tokens` each, in micro-batches of `told` with texts of `length`; a number
    takes `number` bytes."""
    batch = told["micro_batch"] * length
    kept = 1 if told["gradient_checkpointing"] else KEPT
    logits = 10.0 * size.vocabulary  # in the model's precision, in float32, and their gradient
    return Work(trained=tokens * updates, holds=batch * (size.layers * size.width * kept * number + logits))


def policy(told: Mapping, updates: int, size: Size, number: int, models: float = 1) -> Work:
    """GRPO: groups are sampled, read by reward models and the reference, and trained on."""
    answers, answer = told["prompts_per_step"] * told["num_generations"], told["max_completion_length"]
    length = PROMPT + answer
    read = answers * (2 * length + models * QUESTION)
    rest = training(answers * length, updates, told, length, size, number)
    held = answers * length * size.kv * number
    return Work(read * updates, 0, answers * answer * updates, held) + rest


def prompts(asked: Mapping) -> float:
    """Practice prompts of 01's parameters."""
    collection = asked["collection"]
    return CATEGORIES * collection["practice_per_group"] * (1 + collection["benign_ratio"])


def of_data(own: Mapping, size: Size, number: int, of: Mapping) -> Work:
    asking, collection = own["asking"], own["collection"]
    answer, demonstrations = asking["max_new_tokens"], 2 * CATEGORIES * collection["per_group"]
    asked = (CATEGORIES * collection["practice_per_group"] / 2 + demonstrations / 2) * asking["samples"]
    again = demonstrations * collection["contrary_samples"]
    read = asked * WORKED + again * PROMPT
    return Work(read, 0, (asked + again) * answer, 32 * WORKED * size.kv * number)


def of_reward_models(own: Mapping, size: Size, number: int, of: Mapping) -> Work:
    told, text = own["training"], 2 * PROMPT
    pairs = 3 * CATEGORIES * of["01_data"]["collection"]["per_group"]
    updates = own["max_steps"] * CATEGORIES * told["batch_size"] * 2
    read = 2 * pairs * text
    if own["labelled"]:
        read += LABELLED["train"] * text + LABELLED["held"] * (2 * text + 3 * QUESTION)
    work = Work(read, 3 * updates * QUESTION, 0, told["keep_gb"] * 1e9)
    if not own["lora"]:
        return work
    batch = 2 * told["batch_size"] * text  # in float32, on weights of its own
    kept = batch * size.layers * size.width * KEPT + size.weights
    return work + Work(trained=len(own["lora"]) * own["max_steps"] * batch, holds=4 * kept)


def of_margins(own: Mapping, size: Size, number: int, of: Mapping) -> Work:
    before = of["02_shadow_reward_models"]
    again = of_reward_models(before | {"labelled": "", "lora": []}, size, number, of)
    return Work(2 * again.read, again.trained * len(own["objectives"]) / 3, 0, again.holds)


def of_baselines(own: Mapping, size: Size, number: int, of: Mapping) -> Work:
    rules, updates, batch = own["grpo"], own["max_steps"], own["batch_size"]
    length = PROMPT + rules["max_completion_length"]
    imitations = {"start": own["start_steps"], "sft": updates, "best_of_n": updates}
    work = sum((training(batch * length, n, own[name], length, size, number) for name, n in imitations.items()), Work())
    for _ in range(2):  # DPO, and within limits
        work += training(batch * length, updates, own["dpo"], length, size, number) + Work(batch * length * updates)
    drawn = min(prompts(of["01_data"]), rules["prompts_per_step"] * updates) * rules["num_generations"]
    work += Work(drawn * length, 0, drawn * rules["max_completion_length"])
    return work + policy(rules, updates, size, number) + Work(0, 0, 6 * own["max_prompts"] * length)


def of_policies(own: Mapping, size: Size, number: int, of: Mapping) -> Work:
    each = policy(own["training"], own["max_steps"], size, number, CATEGORIES)
    signals = own.get("signal_prompts", 0) * own["training"]["num_generations"]
    drawn = signals * own["training"]["max_completion_length"]
    return sum([each] * len(own["variants"]), Work(4 * signals * 2 * PROMPT, 0, drawn))


def of_evaluation(own: Mapping, size: Size, number: int, of: Mapping) -> Work:
    answer, asked = own["sampling"]["max_new_tokens"], 6 * CATEGORIES * of["01_data"]["evaluation"]["questions"]
    asked = min(asked, own["max_prompts"] or asked)
    policies = 7 + sum(len(of[name]["variants"]) for name in ("04_grpo_linear", "05_grpo_categorized") if name in of)
    again = CATEGORIES * own["attacks"]["per_category"] * own["attacks"]["tries"]
    answers, batch = policies * (asked * 1.3 + again) + 2 * asked, own["sampling"]["batch_size"]  # two are asked twice
    held = batch * (2 * PROMPT + answer) * size.kv * number
    helpful = HELPFUL * policies * 2 * PROMPT if own["helpful"] else 0
    return Work(answers * 2 * PROMPT + helpful, 0, answers * answer, held)


WORKS: dict[str, Callable[..., Work]] = {
    "01_data": of_data,
    "02_shadow_reward_models": of_reward_models,
    "03_margins": of_margins,
    "A0_baselines": of_baselines,
    "04_grpo_linear": of_policies,
    "05_grpo_categorized": of_policies,
    "06_evaluation": of_evaluation,
}
"""What each notebook does, by its own parameters and those of all."""


def measured_rate(width: int, dtype: str, device: torch.device, seconds: float = 0.3) -> float:
    """Multiplications and additions a second in products of matrices such as the model's: those of the fastest product,
    since whatever else the machine does only slows the others."""
    left, right = (
        torch.ones(shape, dtype=getattr(torch, dtype), device=device) for shape in ((512, width), (width, 4 * width))
    )
    fastest, started = float("inf"), time.perf_counter()
    while (begun := time.perf_counter()) - started < seconds:
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * 512 * width * 4 * width / fastest


def room(device: torch.device) -> float:
    """Bytes that a device has for models: those of the GPU, or those of the machine that are free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().available


def plan_of(parameters: Mapping[str, Mapping], model: str, device: str = "auto") -> list[dict]:
    """A row a notebook: `notebook`, tokens (`read`, `trained`, `sampled`), `memory` in bytes and `seconds`. Nothing is
    loaded. `parameters`: all of each notebook, by name. Processes that train together share the memory of a machine,
    but have a GPU each."""
    size, place, dtype = size_of(model), pick_device(device), precision(model, device)
    number = 2 if dtype == "bfloat16" else 4
    rate, rows = measured_rate(size.width, dtype, place), []
    for name in [name for name in parameters if name in WORKS]:
        work = WORKS[name](parameters[name], size, number, parameters)
        processes = parameters[name].get("num_processes", 1)
        spent = sum(count / SHARE[kind] for kind, count in work.operations(size.weights).items())
        row = {"notebook": name, "read": work.read, "trained": work.trained, "sampled": work.sampled}
        memory = (BASE + size.weights * number + work.holds) * (processes if place.type == "cpu" else 1)
        rows.append(row | {"memory": memory, "seconds": spent / rate / processes})
    return rows


def told(rows: Sequence[Mapping], measured: Mapping[str, Mapping]) -> str:
    """The rows as a table, with a line for all; `measured`: manifests of a reference run, by notebook."""
    head = f"{'':<26}{'read':>9}{'trained':>9}{'sampled':>9}  thousand tokens{'memory':>10}{'time':>10}"
    lines = [head]
    for row in rows:
        tokens = "".join(f"{row[kind] / 1e3:>9,.0f}" for kind in SHARE)
        line = f"{row['notebook']:<26}{tokens}{row['memory'] / 1e9:>24.1f} GB{row['seconds'] / 60:>6.0f} min"
        if run := measured.get(row["notebook"]):
            line += f"   measured: {run['peak_memory_mb'] / 1e3:.1f} GB, {run['seconds'] / 60:.0f} min on {run['cpu']}"
        lines.append(line)
    hours, most = sum(row["seconds"] for row in rows) / 3600, max(row["memory"] for row in rows)
    lines.append(f"in all about {hours:.1f} hours here, were nothing else at work, {most / 1e9:.1f} GB; {ASSUMED}")
    return "\n".join(lines)


def check_fits(rows: Sequence[Mapping], available: float) -> None:
    """An `InputError` that names the notebooks whose memory is not there."""
    if large := [row for row in rows if row["memory"] > available]:
        named = ", ".join(f"{row['notebook']} {row['memory'] / 1e9:.1f} GB" for row in large)
        fix = "lower micro_batch, max_length or keep_gb, set gradient_checkpointing, or take a smaller model"
        raise InputError(f"memory: {named}, and there are {available / 1e9:.1f} GB; {fix}")
