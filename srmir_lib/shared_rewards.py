"""The `shared` design: one frozen trunk read once, K probes on it; K reward models for about the price of one.

All K are trained together. The trunk is never back-propagated and its states are kept across epochs while they fit in
memory, so a step costs the probes alone. The loss of a step is the sum of K losses on K separate batches, and no
weight is shared, so the gradients are those of K separate runs (a test compares them).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm

from srmir_lib.artifacts import InputError, atomic_path, read_json, write_json
from srmir_lib.embeddings import conversation_ids, fingerprint, quiet
from srmir_lib.introspection import Introspector
from srmir_lib.models import load_policy, load_tokenizer, pick_device
from srmir_lib.probes import Probes, ProbeSettings
from srmir_lib.reward_training import RewardSettings, select_pairs, tokenize_pairs, write_config
from srmir_lib.trunk import States, Trunk, share_weights, shared_lengths


class SharedScorer:
    """A trunk and K probes in memory; scores texts by all K models, or each by its own."""

    def __init__(self, trunk: Trunk, probes: Probes, tokenizer, think):
        self.trunk, self.probes, self.tokenizer, self.think = trunk, probes, tokenizer, think

    def score(self, prompts: Sequence, completions: Sequence) -> Tensor:
        """Every model on every row: (N, K), float32, on the CPU."""
        return self.score_ids(*self._ids(prompts, completions))

    def score_routed(self, prompts: Sequence, completions: Sequence, columns: Tensor) -> Tensor:
        """Row i by model `columns[i]` only: (N,)."""
        return self.score_ids(*self._ids(prompts, completions), columns)

    def _ids(self, prompts: Sequence, completions: Sequence) -> tuple[list[list[int]], list[str]]:
        chats = self.think(prompts)
        return conversation_ids(self.tokenizer, chats, completions), [str(chat) for chat in chats]

    @torch.no_grad()
    def score_ids(self, ids: Sequence[list[int]], groups: Sequence[str] | None = None, columns: Tensor | None = None):
        """Scores of tokenized conversations, (N, K) or (N,); rows of one group share their common beginning."""
        scores = torch.zeros(len(ids), len(self.probes.categories)) if columns is None else torch.zeros(len(ids))
        for rows, states in self.trunk.read(ids, groups):
            at = columns[rows].to(self.trunk.device) if columns is not None else None
            scores[rows] = self.probes(self.trunk, states, at).float().cpu()
        return scores


def load_shared(folder: Path, base, config: dict, device: str, batch_tokens: int, model=None) -> SharedScorer:
    """Read a set that `fit_shared` wrote; `model`: the base model in memory, whose weights are shared."""
    tokenizer, settings = load_tokenizer(base), ProbeSettings(**config["probe"])
    if model is None:
        with quiet():
            model = load_policy(base, device)
    else:
        model = share_weights(model)
    trunk = Trunk(model, batch_tokens, hidden=settings.kind == "head")
    probes = Probes(trunk, config["categories"], settings, tokenizer)
    probes.load(folder, model.base_model_prefix)
    think = Introspector(model, config["question"], config["draft_tokens"], tokenizer=tokenizer)
    return SharedScorer(trunk, probes.to(trunk.device).eval(), tokenizer, think)


class PairStates:
    """Preference pairs as a trunk has read them: each distinct text once, and a prompt's part once for all its texts.

    `take(rows)` pads what is asked for into `States`. Made once, it serves any number of `fit_shared` on the same
    pairs. States that do not fit into `keep_gb` are not kept, but read again when asked for.
    """

    def __init__(self, base_model, pairs, settings: RewardSettings, device: str = "auto", progress: str | None = None):
        self.base_model, self.base_sha256 = base_model, fingerprint(base_model)
        self.tokenizer, self.hidden = load_tokenizer(base_model), settings.probe.kind == "head"
        with quiet():
            dtype = "bfloat16" if settings.bf16 else "float32"
            self.model = load_policy(base_model, device, dtype).requires_grad_(False)
        self.trunk = Trunk(self.model, settings.batch_tokens, self.hidden)
        think = Introspector(self.model, settings.question, settings.draft_tokens, tokenizer=self.tokenizer)
        self.data = tokenize_pairs(self.tokenizer, pairs, settings.max_length, settings.objective, think)
        self.sha256 = hashlib.sha256(json.dumps(self.data.to_dict()).encode()).hexdigest()
        self.texts: list[list[int]] = []
        self.groups: list[str] = []
        places: dict[tuple[int, ...], int] = {}
        self.rows = torch.zeros(len(self.data), 2, dtype=torch.long)  # where a pair's chosen and rejected text lie
        prompts = [str(prompt) for prompt in pairs["prompt"]]
        for side, name in enumerate(("chosen_ids", "rejected_ids")):
            for pair, tokens in enumerate(self.data[name]):
                at = places.setdefault(tuple(tokens), len(self.texts))
                if at == len(self.texts):
                    self.texts.append(tokens)
                    self.groups.append(prompts[pair])
                self.rows[pair, side] = at
        self.shared = shared_lengths(self.texts, self.groups)
        self.beginnings: dict[str, Tensor] = {}
        self.ends: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.kept, self.progress = self.bytes() <= settings.keep_gb * 1e9, progress

    def bytes(self) -> int:
        """What keeping all states takes."""
        config, element = self.trunk.config, next(self.model.parameters()).element_size()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        own = sum(len(text) - start for text, start in zip(self.texts, self.shared, strict=True))
        common = sum(dict(zip(self.groups, self.shared, strict=True)).values())
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * element * (own + common)

    def keep(self) -> None:
        """Read and keep what fits; done at most once, and by the first `take` at the latest."""
        if self.ends or not self.kept:
            return
        read = self.trunk.read(self.texts, self.groups)
        for rows, states in tqdm(read, desc=self.progress, disable=self.progress is None, leave=False):
            for place, row in enumerate(rows):
                real, start = states.mask[place], self.shared[row]
                text = torch.stack([layer[place][:, real] for layer in (*states.keys, *states.values)])
                if start and self.groups[row] not in self.beginnings:
                    self.beginnings[self.groups[row]] = text[:, :, :start].clone()
                last = states.last[place].clone() if states.last is not None else None
                self.ends[row] = (text[:, :, start:].clone(), last)

    def take(self, rows: Sequence[int]) -> States:
        """The states of `rows`, in that order."""
        if not self.kept:
            read = self.trunk.read([self.texts[row] for row in rows], [self.groups[row] for row in rows])
            return _joined(list(read))
        self.keep()
        lengths = [len(self.texts[row]) for row in rows]
        layers, heads, _, size = self.ends[rows[0]][0].shape
        out = self.ends[rows[0]][0].new_zeros(layers, len(rows), heads, max(lengths), size)
        for place, row in enumerate(rows):
            start = self.shared[row]
            if start:
                out[:, place, :, :start] = self.beginnings[self.groups[row]]
            out[:, place, :, start : lengths[place]] = self.ends[row][0]
        mask = torch.arange(max(lengths), device=out.device) < torch.tensor(lengths, device=out.device).unsqueeze(1)
        last = None if self.ends[rows[0]][1] is None else torch.stack([self.ends[row][1] for row in rows])
        return States(list(out[: layers // 2]), list(out[layers // 2 :]), mask, last)


def _joined(parts: Sequence[tuple[list[int], States]]) -> States:
    """Micro-batches of `Trunk.read` as one batch, in the order of the rows."""
    width = max(states.mask.shape[1] for _, states in parts)
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()

    def grown(tensor: Tensor, dim: int) -> Tensor:
        missing = [*tensor.shape]
        missing[dim] = width - missing[dim]
        return torch.cat([tensor, tensor.new_zeros(missing)], dim=dim)

    layers = range(len(parts[0][1].keys))
    joined = States(
        [torch.cat([grown(s.keys[layer], 2) for _, s in parts]) for layer in layers],
        [torch.cat([grown(s.values[layer], 2) for _, s in parts]) for layer in layers],
        torch.cat([grown(s.mask, 1) for _, s in parts]),
        torch.cat([s.last for _, s in parts]) if parts[0][1].last is not None else None,
    )
    return joined.take(order.to(joined.mask.device))


def pair_batches(counts: Sequence[int], batch_size: int, steps: int, seed: int) -> Iterator[list[list[int]]]:
    """For every step, and every model, which of its `counts[j]` pairs it sees: epochs of its own, each shuffled."""
    generators = [torch.Generator().manual_seed(seed * 1000 + j) for j in range(len(counts))]
    queues: list[list[int]] = [[] for _ in counts]
    for _ in range(steps):
        batch = []
        for queue, count, generator in zip(queues, counts, generators, strict=True):
            while len(queue) < batch_size:
                queue.extend(torch.randperm(count, generator=generator).tolist())
            batch.append(queue[:batch_size])
            del queue[:batch_size]
        yield batch


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
    states: PairStates | None = None,
) -> dict[str, list[dict]]:
    """Train all models on `preferences["train"]`, as `fit_separate` does one by one: same arguments, same folder.

    `states`: these very pairs as the trunk has read them, if another set was trained on them before. A finished set of
    the same data, settings and seed is kept. Returns the history (step, loss, accuracy) of each model.
    """
    output_dir, pairs = Path(output_dir), preferences["train"]
    if states is None or states.hidden != (settings.probe.kind == "head"):
        states = PairStates(base_model, pairs, settings, device, progress)
    covered, labels = list(competence if competence is not None else categories), list(pairs["category"])
    ratios = (settings.cross_ratio, settings.unknown_ratio, seed)
    rows = [select_pairs(labels, name, covered, training, *ratios) for name in categories]
    key = {
        "settings": asdict(settings),
        "seed": seed,
        "training": training,
        "base_sha256": states.base_sha256,
        "pairs": {name: len(own) for name, own in zip(categories, rows, strict=True)},
        "pairs_sha256": hashlib.sha256(json.dumps([states.sha256, rows]).encode()).hexdigest(),
    }
    done = output_dir / "fit.json"
    fit = read_json(done) if done.exists() else {}
    if fit.get("key") != key:
        probes = Probes(states.trunk, categories, settings.probe, states.tokenizer, seed).to(pick_device(device))
        history = train_probes(probes, states, rows, settings, seed, progress)
        fit = {"key": key, "history": history}
        with atomic_path(output_dir) as fresh:
            fresh.mkdir()
            probes.save(fresh, states.model.base_model_prefix, str(base_model))
            base = (base_model, states.base_sha256)
            write_config(fresh, output_dir, "shared", *base, categories, settings, training)
            write_json(fresh / "fit.json", fit)
    return fit["history"]


def train_probes(
    probes: Probes,
    states: PairStates,
    rows: Sequence[Sequence[int]],
    settings: RewardSettings,
    seed: int,
    progress: str | None = None,
) -> dict[str, list[dict]]:
    """Minimise the sum of the models' losses; `rows[j]` are the pairs of model j. Returns the history of each."""
    states.keep()
    margins = torch.tensor(states.data["margin"]) if settings.objective == "margin" else None
    optimiser = torch.optim.AdamW(probes.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / settings.max_steps)
    history: dict[str, list[dict]] = {name: [] for name in probes.categories}
    every, size = max(1, settings.max_steps // 10), settings.batch_size
    device, count = states.trunk.device, len(rows)
    columns = torch.arange(count, device=device).repeat_interleave(2 * size)
    drawn = pair_batches([len(own) for own in rows], size, settings.max_steps, seed)
    bar = tqdm(drawn, total=settings.max_steps, desc=progress, disable=progress is None, leave=False)
    for step, batch in enumerate(bar, start=1):
        pairs = torch.tensor([[rows[j][at] for at in picked] for j, picked in enumerate(batch)])  # (K, batch)
        asked = states.rows[pairs].transpose(1, 2).flatten().tolist()  # by model, then chosen, then rejected
        scores = probes(states.trunk, states.take(asked), columns).view(count, 2, size)
        gaps = scores[:, 0] - scores[:, 1]
        target = margins[pairs].to(device) if margins is not None else 0.0
        loss = -logsigmoid(gaps - target).mean(dim=1)
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
            right = (gaps > 0).float().mean(dim=1)
            for j, name in enumerate(probes.categories):
                history[name].append({"step": step, "loss": loss[j].item(), "accuracy": right[j].item()})
    return history


def clip_each(parameters, limit: float) -> None:
    """Clip the gradient of every model to norm `limit`; dimension 0 of each parameter counts the models."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = sum(grad.flatten(1).square().sum(dim=1) for grad in grads).sqrt()
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))
