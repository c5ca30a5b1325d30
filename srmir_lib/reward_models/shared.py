"""The `shared` design: one frozen trunk read once, K probes on it, instead of K models that each read everything.

All K are trained together. The trunk is never back-propagated and its states are kept across epochs while they fit in
memory, so a step costs the probes alone. The loss of a step is the sum of K losses on K separate batches, and no
weight is shared, so the gradients are those of K separate runs (a test compares them).
"""

from array import array
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm.auto import tqdm

from srmir_lib.artifacts import atomic_path, write_json
from srmir_lib.conversations import conversation_ids
from srmir_lib.errors import InputError
from srmir_lib.models.batching import counted
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.config import kept_fit, write_config
from srmir_lib.reward_models.pairs import pair_batches, pair_loss
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs
from srmir_lib.reward_models.probes import Probes, check_probes
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe

TOKENIZED = 64
"""Texts that are tokenized at a time: a tokenizer notes far more about them than their ids, which arrays keep."""

KEPT = 1.5e9
"""Bytes that a pass keeps for its gradients, about: an update of more is made in parts, of some of the models each."""

PER_UNIT = 100
"""Bytes it keeps for each token, layer and unit of width (measured: 92 and 103, SmolLM2 in bfloat16 behind 218 tokens,
eight and four texts)."""


class SharedScorer:
    """K probes on a trunk; scores texts by all K models, or each by its own."""

    def __init__(self, trunk: Trunk, probes: Probes):
        self.trunk, self.probes = trunk, probes.to(trunk.device).eval()

    @classmethod
    def load(cls, folder: Path, config: dict, trunk: Trunk) -> "SharedScorer":
        """Read a set that `fit_shared` wrote."""
        settings = SizedProbe(**config["probe"])
        check_probes(trunk, settings)
        probes = Probes(trunk, config["categories"], settings)
        probes.load(folder, trunk.model.base_model_prefix)
        return cls(trunk, probes)

    def too_long(self, tokens: int) -> str:
        """What is wrong with a conversation of so many tokens, with a question behind it; "" if nothing."""
        return self.trunk.reach_problem(tokens + self.probes.width)

    def score(self, prompts: Sequence, completions: Sequence, columns: Tensor | None = None) -> Tensor:
        """Every model on every row, (N, K) or, with `columns`, row i by model `columns[i]` only: (N,); on the CPU."""
        return self.score_by([self.probes], prompts, completions, [columns])[0]

    def score_by(
        self,
        sets: Sequence[Probes],
        prompts: Sequence,
        completions: Sequence,
        columns: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """`score` by the probes of several sets on this trunk, which reads every row once; `columns` of each set."""
        ids: list[array] = []
        for start in range(0, len(prompts), TOKENIZED):
            part = slice(start, start + TOKENIZED)
            ids += [array("i", row) for row in conversation_ids(self.trunk.tokenizer, prompts[part], completions[part])]
        self.trunk.check_reach(ids, max(probes.width for probes in sets))
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(str(prompt), len(numbers)) for prompt in prompts]
        return score_ids(self.trunk, sets, ids, groups, columns)


@torch.no_grad()
def score_ids(
    trunk: Trunk,
    sets: Sequence[Probes],
    ids: Sequence[Sequence[int]],
    groups: Sequence[Hashable] | None = None,
    columns: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Scores of tokenized conversations by every set of probes, (N, K) or, where the set has `columns` (N,), (N,); rows
    of one group share their common beginning."""
    count, columns = len(ids), columns or [None] * len(sets)
    shapes = [
        (count, len(probes.categories)) if of is None else (count,) for probes, of in zip(sets, columns, strict=True)
    ]
    scores = [torch.zeros(shape) for shape in shapes]
    for rows, states in counted(trunk.prefill(ids, groups), count, "scores", lambda batch: len(batch[0])):
        for own, probes, of in zip(scores, sets, columns, strict=True):
            at = None if of is None else of[rows].to(trunk.device)
            own[rows] = probes(trunk, states, at).float().cpu()
        del states  # else they are in memory while the next are made
    return scores


def fit_shared(
    pairs: PrefilledPairs,
    output_dir: str | Path,
    categories: Sequence[str],
    settings: RewardSettings,
    seed: int = 0,
    training: str = "own",
    competence: Sequence[str] | None = None,
    progress: str | None = None,
) -> dict[str, list[dict]]:
    """Train all models together, as `fit_separate` does one by one: same arguments, same folder.

    A finished set of the same data, settings and seed is kept. Returns the history (step, loss, accuracy) of each
    model.
    """
    output_dir, trunk = Path(output_dir), pairs.trunk
    rows, target = pairs.rows(categories, settings, training, seed, competence), pairs.target(settings)
    key = pairs.key(rows, target, settings, training, seed)
    if not (fit := kept_fit(output_dir, key)):
        started = perf_counter()
        probes, history = _train(pairs, rows, target, settings, seed, progress)
        fit = {"key": key, "history": history, "seconds": perf_counter() - started}
        with atomic_path(output_dir) as fresh:
            fresh.mkdir()
            probes.save(fresh, trunk.model.base_model_prefix, trunk.base_model)
            write_config(fresh, output_dir, "shared", trunk, categories, settings, training)
            write_json(fresh / "fit.json", fit)
    return fit["history"]


def _train(pairs: PrefilledPairs, rows: Mapping, target, settings: RewardSettings, seed: int, progress: str | None):
    """Trained probes and their history. With `averaged_fits`, the mean of the weights of so many fits from one start,
    each in another order of the pairs (WARM: Ramé et al. 2024, arXiv 2401.12187), and the last fit's history. An
    adapter's two factors are averaged each for itself, which is not the mean of their products."""
    fits = []
    for order in range(settings.averaged_fits):
        probes = untrained(pairs.trunk, list(rows), settings.probe, seed)
        pairs.check_reach(probes.width)
        history = train_probes(probes, pairs, list(rows.values()), target, settings, seed + 1000 * order, progress)
        fits.append(probes)
    with torch.no_grad():
        for weights in zip(*(fit.parameters() for fit in fits), strict=True):
            weights[-1].copy_(torch.stack(weights).mean(dim=0))
    return probes, history


def untrained(trunk: Trunk, categories: Sequence[str], settings: SizedProbe, seed: int) -> Probes:
    """Probes as training finds them: adapters at PEFT's start, heads at zero. At a rate that leaves the noise of the
    labels alone, random heads would outlast the training."""
    probes = Probes(trunk, categories, settings, seed).to(trunk.device)
    probes.heads.data.zero_()
    return probes


def train_probes(
    probes: Probes,
    prefilled: PrefilledPairs,
    rows: Sequence[Sequence[int]],
    target: Tensor | None,
    settings: RewardSettings,
    seed: int,
    progress: str | None = None,
) -> dict[str, list[dict]]:
    """Minimise the sum of the models' losses; `rows[j]` are the pairs of model j. Returns the history of each.

    `target`: what the objective wants of each pair's gap, (N,), or None. `seed`: of the order of the pairs.
    """
    prefilled.keep()
    minimised = pair_loss(settings.objective)
    optimiser = torch.optim.AdamW(probes.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / settings.max_steps)
    history: dict[str, list[dict]] = {name: [] for name in probes.categories}
    every, size = max(1, settings.max_steps // 10), settings.batch_size
    trunk, count = prefilled.trunk, len(rows)
    parts = torch.arange(count).split(models_at_once(probes, trunk, 2 * size))
    drawn = pair_batches([len(own) for own in rows], size, settings.max_steps, seed)
    bar = tqdm(drawn, total=settings.max_steps, desc=progress, disable=progress is None, leave=False)
    for step, batch in enumerate(bar, start=1):
        pairs = torch.tensor([[rows[j][at] for at in picked] for j, picked in enumerate(batch)])  # (K, batch)
        found = []
        optimiser.zero_grad()
        for own in parts:  # no weight is shared, so their gradients are those of all at once
            asked = prefilled.at[pairs[own]].transpose(1, 2).flatten()  # of each model, chosen, then rejected
            columns = own.to(trunk.device).repeat_interleave(2 * size)
            scores = probes(trunk, prefilled.select(asked.tolist()), columns).view(len(own), 2, size)
            aims = [(target[of].to(trunk.device),) if target is not None else () for of in pairs[own]]
            loss = torch.stack([minimised(*both, *aim) for both, aim in zip(scores, aims, strict=True)])
            loss = loss + settings.center_rewards_coefficient * scores.sum(dim=1).square().mean(dim=1)
            if not loss.isfinite().all():
                name = probes.categories[own[int((~loss.isfinite()).nonzero()[0])]]
                raise InputError(f"{name}: the loss of step {step} is not finite; lower learning_rate")
            loss.sum().backward()
            found.append((loss.detach(), scores.detach()))
        clip_each(probes.parameters(), 1.0)
        optimiser.step()
        decay.step()
        if step % every == 0 or step == settings.max_steps:
            loss, scores = map(torch.cat, zip(*found, strict=True))
            right = (scores[:, 0] > scores[:, 1]).float().mean(dim=1)
            for j, name in enumerate(probes.categories):
                history[name].append({"step": step, "loss": loss[j].item(), "accuracy": right[j].item()})
    return history


def models_at_once(probes: Probes, trunk: Trunk, texts: int) -> int:
    """How many models one pass trains, on so many texts each, that keeps about `KEPT` bytes at most; one at least."""
    units = texts * probes.width * trunk.config.num_hidden_layers * trunk.config.hidden_size
    return max(1, min(len(probes.categories), int(KEPT / PER_UNIT / units)))


def clip_each(parameters, limit: float) -> None:
    """Clip the gradient of every model to norm `limit`; dimension 0 of each parameter counts the models."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = sum(grad.flatten(1).square().sum(dim=1) for grad in grads).sqrt()
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))
