"""The `shared` design: one frozen trunk read once, K probes on it; K reward models for about the price of one.

All K are trained together. The trunk is never back-propagated and its states are kept across epochs while they fit in
memory, so a step costs the probes alone. The loss of a step is the sum of K losses on K separate batches, and no
weight is shared, so the gradients are those of K separate runs (a test compares them).
"""

import hashlib
import json
from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm.auto import tqdm

from srmir_lib.artifacts import atomic_path, read_json, write_json
from srmir_lib.conversations import conversation_ids
from srmir_lib.data.introspection import Introspector
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_policy, load_tokenizer, pick_device, quiet, share_weights
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.config import ProbeSettings, RewardSettings, write_config
from srmir_lib.reward_models.pairs import pair_batches, pair_loss, select_pairs
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs, prefill_key
from srmir_lib.reward_models.probes import Probes

KEPT = 10
"""So many tokens that were kept cost about what one costs that is read."""


MOST_PASSES = 4
"""Passes over the pairs of one update: more spare next to nothing."""


TOKENIZED = 64
"""Texts that are tokenized at a time: a tokenizer notes far more about them than their ids, which arrays keep."""


class SharedScorer:
    """A trunk and K probes in memory; scores texts by all K models, or each by its own."""

    def __init__(self, trunk: Trunk, probes: Probes, tokenizer, think):
        self.trunk, self.probes, self.tokenizer, self.think = trunk, probes, tokenizer, think

    def score(self, prompts: Sequence, completions: Sequence) -> Tensor:
        """Every model on every row: (N, K), float32, on the CPU."""
        return self.score_by([self.probes], prompts, completions)[0]

    def score_by(self, sets: Sequence[Probes], prompts: Sequence, completions: Sequence) -> list[Tensor]:
        """`score` by the probes of several sets over this one trunk, which reads every row once."""
        return score_ids(self.trunk, sets, *self._ids(prompts, completions))

    def score_routed(self, prompts: Sequence, completions: Sequence, columns: Tensor) -> Tensor:
        """Row i by model `columns[i]` only: (N,)."""
        return score_ids(self.trunk, [self.probes], *self._ids(prompts, completions), columns)[0]

    def join(self, other: "SharedScorer") -> None:
        """Use the trunk and the drafts of `other`, which asks the same base model the same question."""
        self.think = other.think
        if (self.trunk.layer, self.trunk.device) == (other.trunk.layer, other.trunk.device):
            self.trunk = other.trunk

    def _ids(self, prompts: Sequence, completions: Sequence) -> tuple[list[Sequence[int]], list[int]]:
        """Tokens of every conversation, and the number of its prompt."""
        chats, ids = self.think(prompts), []
        for start in range(0, len(chats), TOKENIZED):
            part = slice(start, start + TOKENIZED)
            ids += [array("i", row) for row in conversation_ids(self.tokenizer, chats[part], completions[part])]
        numbers: dict[str, int] = {}
        return ids, [numbers.setdefault(str(chat), len(numbers)) for chat in chats]


@torch.no_grad()
def score_ids(
    trunk: Trunk,
    sets: Sequence[Probes],
    ids: Sequence[Sequence[int]],
    groups: Sequence[Hashable] | None = None,
    columns: Tensor | None = None,
) -> list[Tensor]:
    """Scores of tokenized conversations by every set of probes, (N, K) or, with `columns`, (N,); rows of one group
    share their common beginning."""
    count = len(ids)
    scores = [torch.zeros(count, len(probes.categories)) if columns is None else torch.zeros(count) for probes in sets]
    widths = {probes.width * (len(probes.categories) if columns is None else 1) for probes in sets}
    room = widths.pop() if len(widths) == 1 else 0  # sets of one width write into the same places, in turn
    for rows, states in trunk.prefill(ids, groups, room=room):
        at = columns[rows].to(trunk.device) if columns is not None else None
        for own, probes in zip(scores, sets, strict=True):
            own[rows] = probes(trunk, states, at).float().cpu()
        del states  # else they are in memory while the next are made
    return scores


def load_shared(folder: Path, base, config: dict, device: str, batch_tokens: int, model=None) -> SharedScorer:
    """Read a set that `fit_shared` wrote; `model`: the base model in memory, whose weights are shared."""
    tokenizer, settings = load_tokenizer(base), ProbeSettings(**config["probe"])
    if model is None:
        with quiet():
            model = load_policy(base, device)
    else:
        model = share_weights(model)
    trunk = Trunk(model, batch_tokens, layer=-1 if settings.kind == "head" else None)
    probes = Probes(trunk, config["categories"], settings, tokenizer)
    probes.load(folder, model.base_model_prefix)
    think = Introspector(model, config["question"], config["draft_tokens"], tokenizer=tokenizer)
    return SharedScorer(trunk, probes.to(trunk.device).eval(), tokenizer, think)


def fit_shared(
    base_model: str | Path,
    preferences: Mapping,
    output_dir: str | Path,
    categories: Sequence[str],
    settings: RewardSettings,
    seed: int = 0,
    training: str = "own",
    device: str = "auto",
    competence: Sequence[str] | None = None,
    progress: str | None = None,
    states: PrefilledPairs | None = None,
) -> dict[str, list[dict]]:
    """Train all models on `preferences["train"]`, as `fit_separate` does one by one: same arguments, same folder.

    `states`: these very pairs as the trunk has read them, if another set was trained on them before. A finished set of
    the same data, settings and seed is kept. Returns the history (step, loss, accuracy) of each model.
    """
    output_dir, pairs = Path(output_dir), preferences["train"]
    alike = states is not None and states.reading == prefill_key(settings)
    if not alike or (settings.probe.kind == "head" and not states.hidden):
        states = PrefilledPairs(base_model, pairs, settings, device, progress)
    covered, labels = list(competence if competence is not None else categories), list(pairs["category"])
    ratios = (settings.cross_ratio, settings.unknown_ratio, seed)
    rows = [select_pairs(labels, name, covered, training, *ratios) for name in categories]
    target = states.target(settings)
    wanted = [] if target is None else target.tolist()
    key = {
        "settings": asdict(settings),
        "seed": seed,
        "training": training,
        "base_sha256": states.base_sha256,
        "pairs": {name: len(own) for name, own in zip(categories, rows, strict=True)},
        "pairs_sha256": hashlib.sha256(json.dumps([states.sha256, rows, wanted]).encode()).hexdigest(),
    }
    done = output_dir / "fit.json"
    fit = read_json(done) if done.exists() else {}
    if fit.get("key") != key:
        started = perf_counter()
        probes, history = _train(states, categories, rows, target, settings, seed, device, progress)
        fit = {"key": key, "history": history, "seconds": perf_counter() - started}
        with atomic_path(output_dir) as fresh:
            fresh.mkdir()
            probes.save(fresh, states.model.base_model_prefix, str(base_model))
            base = (base_model, states.base_sha256)
            write_config(fresh, output_dir, "shared", *base, categories, settings, training)
            write_json(fresh / "fit.json", fit)
    return fit["history"]


def _train(
    states: PrefilledPairs, categories, rows, target, settings: RewardSettings, seed: int, device: str, progress
):
    """Trained probes and their history. With `averaged_fits`, the mean of the weights of so many fits from one start,
    each in another order of the pairs (WARM: Ramé et al. 2024, arXiv 2401.12187), and the last fit's history. An
    adapter's two factors are averaged each for itself, which is not the mean of their products."""
    fits = []
    for order in range(settings.averaged_fits):
        probes = Probes(states.trunk, categories, settings.probe, states.tokenizer, seed).to(pick_device(device))
        history = train_probes(probes, states, rows, target, settings, seed + 1000 * order, progress)
        fits.append(probes)
    with torch.no_grad():
        for weights in zip(*(fit.parameters() for fit in fits), strict=True):
            weights[-1].copy_(torch.stack(weights).mean(dim=0))
    return probes, history


def train_probes(
    probes: Probes,
    states: PrefilledPairs,
    rows: Sequence[Sequence[int]],
    target: Tensor | None,
    settings: RewardSettings,
    seed: int,
    progress: str | None = None,
) -> dict[str, list[dict]]:
    """Minimise the sum of the models' losses; `rows[j]` are the pairs of model j. Returns the history of each.

    `target`: what the objective wants of each pair's gap, (N,), or None. `seed`: of the order of the pairs.
    """
    states.keep()
    minimised = pair_loss(settings.objective)
    optimiser = torch.optim.AdamW(probes.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / settings.max_steps)
    history: dict[str, list[dict]] = {name: [] for name in probes.categories}
    every, size = max(1, settings.max_steps // 10), settings.batch_size
    device, count = states.trunk.device, len(rows)
    drawn = pair_batches([len(own) for own in rows], size, settings.max_steps, seed)
    bar = tqdm(drawn, total=settings.max_steps, desc=progress, disable=progress is None, leave=False)
    for step, batch in enumerate(bar, start=1):
        pairs = torch.tensor([[rows[j][at] for at in picked] for j, picked in enumerate(batch)])  # (K, batch)
        asked = states.rows[pairs].transpose(1, 2).flatten(1)  # (K, 2 batch): of each model, chosen, then rejected
        scores = scores_of_batch(probes, states, asked).view(count, 2, size)
        aims = [(target[own].to(device),) if target is not None else () for own in pairs]
        loss = torch.stack([minimised(*both, *aim) for both, aim in zip(scores, aims, strict=True)])
        loss = loss + settings.center_rewards_coefficient * scores.sum(dim=1).square().mean(dim=1)
        if not loss.isfinite().all():
            name = probes.categories[int((~loss.isfinite()).nonzero()[0])]
            raise InputError(f"{name}: the loss of step {step} is not finite; lower learning_rate")
        optimiser.zero_grad()
        loss.sum().backward()
        clip_each(probes.parameters(), 1.0)
        optimiser.step()
        decay.step()
        if step % every == 0 or step == settings.max_steps:
            right = (scores[:, 0] > scores[:, 1]).float().mean(dim=1)
            for j, name in enumerate(probes.categories):
                history[name].append({"step": step, "loss": loss[j].item(), "accuracy": right[j].item()})
    return history


def scores_of_batch(probes: Probes, states: PrefilledPairs, texts: Tensor) -> Tensor:
    """Each model's scores of its own texts, (K, N) places in `states` -> (K, N); differentiable.

    A model's texts are read from short to long, in as many passes as spare more padding than they cost.
    """
    lengths, order = states.lengths[texts].sort(dim=1)
    scores, pass_tokens = [], KEPT * states.trunk.pass_tokens

    def cost(passes: int) -> int:
        return sum(part.numel() * int(part.max()) + pass_tokens for part in lengths.chunk(passes, dim=1))

    for part in order.chunk(min(range(1, MOST_PASSES + 1), key=cost), dim=1):
        columns = torch.arange(len(texts), device=states.trunk.device).repeat_interleave(part.shape[1])
        read = states.select(texts.gather(1, part).flatten().tolist(), room=probes.width)
        scores.append(probes(states.trunk, read, columns).view(len(texts), -1))
    back = order.argsort(dim=1).to(scores[0].device)
    return torch.cat(scores, dim=1).gather(1, back)


def clip_each(parameters, limit: float) -> None:
    """Clip the gradient of every model to norm `limit`; dimension 0 of each parameter counts the models."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = sum(grad.flatten(1).square().sum(dim=1) for grad in grads).sqrt()
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))
