"""Who races in the cost study: K classifiers as TRL runs them, the same tuned, PEFT's Activated LoRA, and ours.

All but `scores_on_own_model` have random weights: time and memory do not depend on what a model has learned.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from srmir_lib.conversations import assistant_message, conversation_ids, user_message
from srmir_lib.data.margins import annotate
from srmir_lib.errors import InputError
from srmir_lib.models.batching import by_length, padded
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.legend import legend_margin
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.probes import Probes
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.reward_models.shared import SharedScorer, score_ids
from srmir_lib.settings.cost import Shape
from srmir_lib.settings.reward_training import SizedProbe
from srmir_lib.studies.a5_cost.limits import Load, Spread, race, ratio, shape_of
from srmir_lib.taxonomy import CATEGORIES

SIDES = ("chosen", "rejected")


LONGEST = 8192
"""Positions of the random models."""


def random_policy(shape: Shape, tokenizer, device: str = "cpu", dtype: str = "float32", seed: int = 0):
    """A causal language model of the Qwen2 family with random weights, frozen."""
    with _drawn(seed, device):
        model = AutoModelForCausalLM.from_config(_config(shape, tokenizer), dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def random_classifiers(
    shape: Shape, tokenizer, count: int, device: str = "cpu", dtype: str = "float32", seed: int = 0
) -> list:
    """`count` classifiers of one output and the same shape, each with weights of its own, frozen."""
    models = []
    for index in range(count):
        config = _config(shape, tokenizer, num_labels=1, name_or_path=f"classifier_{index}")
        with _drawn(seed + index, device):
            model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, dtype))
        models.append(model.eval().requires_grad_(False))
    return models


def random_set(trunk: Trunk, count: int, settings: SizedProbe, seed: int = 0) -> ShadowRewardModels:
    """`count` models of the shared design on a trunk, their adapters drawn wide enough to matter."""
    names = category_names(trunk.tokenizer, count)
    probes = Probes(trunk, names, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for up in probes.up.values():
            up.normal_(0, 0.05, generator=generator)
    unit = Calibration(tuple(names), (0.0,) * count, (1.0,) * count, 2)
    return ShadowRewardModels(SharedScorer(trunk, probes.requires_grad_(False)), names, "shared", unit)


def category_names(tokenizer, count: int) -> list[str]:
    """The seven, then words of the tokenizer's, for as many probes as asked for."""
    names = [*CATEGORIES, *(word for word in words(tokenizer) if word not in CATEGORIES)]
    if count > len(names):
        raise InputError(f"models: {count} asked for, but this tokenizer has names for {len(names)}; ask for fewer")
    return names[:count]


def words(tokenizer) -> list[str]:
    """Words that are one token each when a space comes before them, in the order of their ids."""
    found = sorted((at, token) for token, at in tokenizer.get_vocab().items() if token[0] == "Ġ" and len(token) > 3)
    plain = [token[1:] for _, token in found if token[1:].isascii() and token[1:].isalpha() and token[1:].islower()]
    if not plain:
        raise InputError("tokenizer: no word of one token; the texts of this study need a byte-level BPE tokenizer")
    return plain


def texts(
    tokenizer, load: Load, prompts: int, seed: int = 0, shortest: int | None = None
) -> tuple[list[list[dict]], list[list[dict]]]:
    """(prompts, completions) of so many groups, conversations in TRL's format, of exactly the load's lengths in tokens.

    With `shortest` the completions' lengths are drawn evenly from there to the load's.
    """
    rng, vocabulary = np.random.default_rng(seed), words(tokenizer)
    empty = len(conversation_ids(tokenizer, [""])[0])
    ends = len(conversation_ids(tokenizer, [""], [""])[0]) - empty
    asked, answered = [], []
    for _ in range(prompts):
        prompt = user_message(_text(rng, vocabulary, load.prompt - empty))
        for _ in range(load.group):
            length = load.completion if shortest is None else int(rng.integers(shortest, load.completion + 1))
            asked.append(prompt)
            answered.append(assistant_message(_text(rng, vocabulary, length - ends)))
    return asked, answered


def contestants(
    shared: ShadowRewardModels,
    classifiers: Sequence,
    tokenizer,
    prompts: Sequence,
    completions: Sequence,
    batch_tokens: int,
) -> dict[str, Callable]:
    """Everyone who scores these conversations, for `cost.race`: name -> a call from conversations to scores.

    `seven` and `tuned`: all classifiers, as TRL runs them and without waste; `one`: the first of them, without waste.
    `linear`: our reward from all models; `routed`: each prompt's own model; `watched`: the same, with a look at the
    others; `alone`: all models, but no prompt is shared; `again`: `linear` once more, for the noise of the race.
    """
    order = {str(prompt): at for at, prompt in enumerate({str(prompt): 0 for prompt in prompts})}
    names = [shared.categories[order[str(prompt)] % len(shared.categories)] for prompt in prompts]
    columns, rows = {"category": names}, (prompts, completions)
    watched, trunk = RewardFunction(shared, "categorized", monitor_every=1), shared.scorer.trunk
    return {
        "seven": partial(score_as_trl, classifiers, tokenizer, *rows),
        "tuned": partial(score_tuned, classifiers, tokenizer, *rows, batch_tokens),
        "one": partial(score_tuned, classifiers[:1], tokenizer, *rows, batch_tokens),
        "linear": partial(RewardFunction(shared, "linear"), *rows),
        "routed": partial(RewardFunction(shared, "categorized"), *rows, **columns),
        "watched": partial(watched, *rows, **columns, log_metric=lambda *_: None),
        "again": partial(RewardFunction(shared, "linear"), *rows),
        "alone": lambda: score_ids(trunk, [shared.scorer.probes], conversation_ids(tokenizer, *rows))[0],
    }


def growth(
    trunk: Trunk, classifier, loads: Mapping, settings: SizedProbe, rounds: int, seed: int
) -> dict[object, Spread]:
    """Our cost of every load in plain forwards, {its key: ratio}: a group scored by all models, over the same group
    scored by one classifier without waste. All loads race together."""
    runners = {}
    for key, load in loads.items():
        rows = texts(trunk.tokenizer, load, 1, seed)
        models = random_set(trunk, load.models, settings, seed)
        runners["shared", key] = partial(models.score, *rows)
        runners["plain", key] = partial(score_tuned, [classifier], trunk.tokenizer, *rows, trunk.batch_tokens)
    seconds = race(runners, rounds, trunk.device.type)
    return {key: ratio(seconds["shared", key], seconds["plain", key]) for key in loads}


def scores_on_own_model(
    trunk: Trunk,
    pairs: Mapping,
    lengths: Sequence[int],
    count: int,
    settings: SizedProbe,
    rounds: int,
    seed: int = 0,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """What `count` scores cost on a trunk with its own weights, beside its own plain forward: of texts that share no
    prompt, as long as the median of the `pairs`' texts ("median"), and of other `lengths` in tokens.

    (seconds, tokens) by name of length: {"scores": [rounds], "forward": [rounds]}. Of the `lengths`, those are left out
    that the trunk cannot read with a probe behind them.
    """
    models = random_set(trunk, count, settings, seed)
    width = models.scorer.probes.width
    ids = [one for side in SIDES for one in conversation_ids(trunk.tokenizer, pairs["prompt"], pairs[side])]
    reached = [length for length in lengths if not trunk.reach_problem(length + width)]
    tokens = {"median": round(np.median([len(one) for one in ids]))} | {str(length): length for length in reached}
    template = len(conversation_ids(trunk.tokenizer, [""])[0])
    runners = {}
    for name, length in tokens.items():
        prompt = max(template + 1, length // 2)
        load = Load(prompt, length - prompt, 1, count, width)
        ids = conversation_ids(trunk.tokenizer, *texts(trunk.tokenizer, load, max(1, trunk.batch_tokens // length)))
        runners[name, "scores"] = partial(score_ids, trunk, [models.scorer.probes], ids)
        runners[name, "forward"] = partial(_forward, trunk, ids)
    seconds = race(runners, rounds, trunk.device.type)
    return {name: {side: seconds[name, side] for side in ("scores", "forward")} for name in tokens}, tokens


@torch.inference_mode()
def _forward(trunk: Trunk, ids: Sequence[Sequence[int]]) -> None:
    for rows in by_length(range(len(ids)), [len(row) for row in ids], trunk.batch_tokens):
        trunk.decoder(**padded([ids[row] for row in rows], trunk.device, trunk.tokenizer.pad_token_id), use_cache=False)


@torch.inference_mode()
def score_as_trl(classifiers: Sequence, tokenizer, prompts: Sequence, completions: Sequence) -> Tensor:
    """(N, K): what `GRPOTrainer` 1.16 does with a list of reward models (a test compares it with the trainer itself).

    One model after another; each tokenizes all texts again, pads them to the longest, and runs them in one batch with
    a key-value cache that nobody reads.
    """
    from trl import apply_chat_template

    scores = torch.zeros(len(prompts), len(classifiers), device=classifiers[0].device)
    for j, classifier in enumerate(classifiers):
        chats = [{"messages": prompt + completion} for prompt, completion in zip(prompts, completions, strict=True)]
        rows = [apply_chat_template(chat, tokenizer)["text"] for chat in chats]
        inputs = tokenizer(
            text=rows, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        ).to(classifier.device)
        scores[:, j] = classifier(**inputs).logits[:, 0]
    return scores


@torch.inference_mode()
def score_tuned(classifiers: Sequence, tokenizer, prompts: Sequence, completions: Sequence, batch_tokens: int):
    """(N, K): the same with the waste taken out: tokenized once, no cache, micro-batches in order of length."""
    ids = conversation_ids(tokenizer, prompts, completions)
    scores = torch.zeros(len(ids), len(classifiers), device=classifiers[0].device)
    for rows in by_length(range(len(ids)), [len(row) for row in ids], batch_tokens):
        inputs = padded([ids[row] for row in rows], scores.device, tokenizer.pad_token_id)
        for j, classifier in enumerate(classifiers):
            scores[rows, j] = classifier(**inputs, use_cache=False).logits[:, 0]
    return scores


def free_reward(completions, **_) -> list[float]:
    """A reward function for `GRPOTrainer` that costs nothing."""
    return [0.0] * len(completions)


@torch.no_grad()
def score_with_peft(models: ShadowRewardModels, prompts: Sequence, completions: Sequence) -> Tensor:
    """(N, K): PEFT's Activated LoRA (Greenewald et al. 2025) on each text with its question behind it; one forward for
    every text and model, nothing shared, nothing cached, no padding."""
    from peft import PeftModel
    from safetensors.torch import load_file

    probes, trunk = models.scorer.probes, models.scorer.trunk
    ids, policy = conversation_ids(trunk.tokenizer, prompts, completions), trunk.model
    scores = torch.zeros(len(ids), len(models.categories))
    with tempfile.TemporaryDirectory() as folder:
        probes.save(folder, policy.base_model_prefix, "random")
        for j, name in enumerate(models.categories):
            where, question = Path(folder, name), probes.question(j)
            single = PeftModel.from_pretrained(deepcopy(policy), where).eval()
            head = load_file(where / "head.safetensors")["score.weight"][0].to(policy.device)
            for row, text in enumerate(ids):
                whole = torch.tensor([text + question], device=policy.device)
                states = single(input_ids=whole, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
                scores[row, j] = states[0, -1].float() @ head
    return scores


@torch.no_grad()
def annotate_one_by_one(policy, tokenizer, pairs: Mapping, direction: Tensor) -> Tensor:
    """(N,): Legend margins by the plain loop: one text at a time, with all logits and every layer's hidden states."""
    sides = []
    for side in SIDES:
        ids = conversation_ids(tokenizer, pairs["prompt"], pairs[side])
        inputs = (torch.tensor([text], device=policy.device) for text in ids)
        outputs = (policy(input_ids=one, output_hidden_states=True) for one in inputs)
        sides.append(torch.stack([output.hidden_states[-1][0, -1].float().cpu() for output in outputs]))
    return legend_margin(*sides, direction)


def annotate_by_ensemble(classifiers: Sequence, tokenizer, pairs: Mapping, batch_tokens: int) -> Tensor:
    """(N,): margins as the mean score gap of several reward models, each a model of its own (Wang et al. 2024, arXiv
    2401.06080); without waste, as in `score_tuned`."""
    sides = (score_tuned(classifiers, tokenizer, pairs["prompt"], pairs[side], batch_tokens) for side in SIDES)
    chosen, rejected = sides
    return (chosen - rejected).mean(dim=1)


def annotators(
    policy, tokenizer, pairs: Mapping, ensemble: int, batch_tokens: int, seed: int = 0
) -> dict[str, Callable]:
    """For `cost.race`: margins of `pairs` along a random direction, by `margins.annotate` and by the plain `loop`, and
    those of so many random classifiers of the policy's shape, an `ensemble` whose training is not counted."""
    dtype = str(policy.dtype).removeprefix("torch.")
    classifiers = random_classifiers(shape_of(policy.config), tokenizer, ensemble, policy.device.type, dtype, seed)
    direction = torch.randn(policy.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    of = (policy, tokenizer, pairs, direction / direction.norm())
    return {
        "annotate": partial(annotate, *of),
        "loop": partial(annotate_one_by_one, *of),
        "ensemble": partial(annotate_by_ensemble, classifiers, tokenizer, pairs, batch_tokens),
    }


def memory_of_shared(
    shape: Shape, load: Load, base: str, settings: SizedProbe, batch_tokens: int, device: str, dtype: str
):
    """For `cost.peak_bytes`: all models of the shared design, as a call that scores a number of rows."""
    tokenizer = load_tokenizer(base)
    policy = random_policy(shape, tokenizer, device, dtype)
    models = random_set(Trunk(policy, tokenizer, batch_tokens=batch_tokens), load.models, settings)
    return lambda rows: partial(models.score, *texts(tokenizer, load, max(1, rows // load.group)))


def memory_of_classifier(shape: Shape, load: Load, base: str, device: str, dtype: str):
    """For `cost.peak_bytes`: one classifier as TRL runs it, in the same way; all K take their turns in that memory."""
    tokenizer = load_tokenizer(base)
    models = random_classifiers(shape, tokenizer, 1, device, dtype)
    return lambda rows: partial(score_as_trl, models, tokenizer, *texts(tokenizer, load, max(1, rows // load.group)))


def _config(shape: Shape, tokenizer, **options) -> Qwen2Config:
    if shape.vocab < len(tokenizer):
        raise InputError(f"vocab: {shape.vocab} is fewer than the tokenizer's {len(tokenizer)} tokens; raise it")
    return Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **options,
    )


@contextmanager
def _drawn(seed: int, device: str):
    """Weights are drawn on the device they stay on, from a seed, and nobody else's random numbers are touched."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        yield


def _text(rng, vocabulary: Sequence[str], length: int) -> str:
    if length < 1:
        raise InputError(f"load: {length} tokens are left beside the chat template; ask for longer texts")
    return "".join(" " + vocabulary[at] for at in rng.integers(0, len(vocabulary), length))
