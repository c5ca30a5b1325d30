r"""Read-outs: how good an answer is, read off a causal model's own hidden states, learned from labelled pairs.

Deng et al. 2025 (arXiv 2503.10093: RBRM), `papers.rbrm.hybrid_reward`: a linear read-out of every layer, and a gate
over them. Read `learn_readouts` first. Ours, because the paper does not say: states are centred and scaled before they
are read, by what the labelled answers show, so that one learning rate serves all layers; pairs come in batches of 8;
and the mean score of the answers learned from is subtracted, for a loss of differences leaves the level to chance and a
confidence, which goes by a sigmoid of scores, depends on it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from srmir_lib.artifacts import as_written, atomic_path, digest, read_json, write_json
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.embeddings import embed_layers
from srmir_lib.models.loading import read_tensors
from srmir_lib.papers.rbrm import hybrid_reward, readout_loss

MOST_PAIRS = 1000
"""Labelled pairs that read-outs are learned from at most (Deng et al. 2025)."""

LEAST_SCALE = 1e-3
"""A dimension that hardly varies is scaled as one whose spread is this share of its layer's."""

LEARNED = ("weights", "bias", "gate")


def all_layers(model) -> list[int]:
    """The hidden states behind every block, 1 to `num_hidden_layers`; number 0, the token's embedding, has read
    nothing yet."""
    return list(range(1, model.config.get_text_config().num_hidden_layers + 1))


class ReadOuts:
    """L read-outs and their gate; `model` is the fingerprint (`loading.fingerprint`) of the model whose states they
    read, at `layers` (L of them, numbered as in `embeddings.embed`), pooled by `pooling`.

    `tensors`: weights (L, H), bias (L,), gate (L, L) of `hybrid_reward`, center and scale (L, H) of the states, and
    level (1,), the mean of `hybrid_reward` over the answers that were learned from.
    """

    def __init__(self, layers: Sequence[int], pooling: str, model: str, tensors: dict[str, Tensor]):
        self.layers, self.pooling, self.model, self.tensors = list(layers), pooling, model, tensors

    @property
    def sha256(self) -> str:
        """What tells these from other read-outs: a hash of where they read and of all their numbers."""
        numbers = {name: tensor.tolist() for name, tensor in self.tensors.items()}
        return digest([self.layers, self.pooling, self.model, numbers], sort_keys=True)

    @classmethod
    def blank(cls, layers: Sequence[int], pooling: str, model: str, states: Tensor) -> "ReadOuts":
        """Read-outs that have learned nothing and score 0, for states such as these (N, L, H).

        A layer whose states are the same for every answer is an `InputError`.
        """
        states = checked_states(states).detach()
        spread = states.std(dim=0)
        if not (spread.amax(dim=-1) > 0).all():
            layer = layers[int((spread.amax(dim=-1) == 0).nonzero()[0])]
            raise InputError(f"layer {layer}: its states are the same for every answer; read another, or pool by mean")
        least = LEAST_SCALE * spread.square().mean(dim=-1, keepdim=True).sqrt()
        count, size = spread.shape
        blank = {"weights": torch.zeros(count, size), "bias": torch.zeros(count), "gate": torch.zeros(count, count)}
        seen = {"center": states.mean(dim=0), "scale": spread.maximum(least), "level": torch.zeros(1)}
        return cls(layers, pooling, model, blank | seen)

    def read(self, model, tokenizer, prompts: Sequence, responses: Sequence) -> Tensor:
        """States (N, L, H) of prompts with their responses, as these read-outs read them."""
        return embed_layers(model, tokenizer, prompts, responses, self.layers, self.pooling)

    def score(self, states: Tensor) -> Tensor:
        """States (N, L, H) -> scores (N,), higher is better, without a gradient; states that are not finite are a
        `RowError`."""
        with torch.no_grad():
            return self._score(checked_states(states))

    def _score(self, states: Tensor) -> Tensor:
        parts = self.tensors
        read = (states - parts["center"]) / parts["scale"]
        return hybrid_reward(read, *(parts[name] for name in LEARNED)) - parts["level"]

    def learn(
        self,
        chosen: Tensor,
        rejected: Tensor,
        epochs: int = 50,
        learning_rate: float = 1e-3,
        batch_size: int = 8,
        seed: int = 0,
    ) -> list[float]:
        """Go on learning from the states (N, L, H) of the better and the worse answers; returns each epoch's mean
        loss (nats).

        Adam on `readout_loss`, in batches of pairs whose order follows from the `seed`; epochs and learning rate as in
        Deng et al. 2025, who let the scorer learn on from detached states of the present policy at 0.01. States or
        losses that are not finite are an `InputError`, and the read-outs stay what they were.
        """
        sides = [checked_states(side).detach() for side in (chosen, rejected)]
        before, losses = {name: self.tensors[name].clone() for name in LEARNED}, []
        parts = [self.tensors[name].requires_grad_() for name in LEARNED]
        adam, order = torch.optim.Adam(parts, lr=learning_rate), torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(chosen), generator=order).split(batch_size):
                loss = readout_loss(*(self._score(side[rows]) for side in sides))
                adam.zero_grad()
                loss.backward()
                adam.step()
                total += loss.item() * len(rows)
            losses.append(total / len(chosen))
        finite = torch.tensor(losses).isfinite().all() and all(part.isfinite().all() for part in parts)
        self.tensors |= {name: self.tensors[name].detach() for name in LEARNED} if finite else before
        if not finite:
            raise InputError(f"read-outs: the loss is not finite at a learning rate of {learning_rate}; lower it")
        self.tensors["level"] = self.tensors["level"] + self.score(torch.cat(sides)).mean()
        return losses

    def save(self, folder: str | Path) -> None:
        """Write `readouts.safetensors` and `readouts.json` to `folder`, all or nothing."""
        about = {"layers": self.layers, "pooling": self.pooling, "model": self.model}
        with atomic_path(Path(folder).resolve()) as fresh:
            fresh.mkdir()
            save_file(
                {name: value.contiguous() for name, value in self.tensors.items()}, fresh / "readouts.safetensors"
            )
            write_json(fresh / "readouts.json", about | {"hidden_size": self.tensors["weights"].shape[1]})

    @classmethod
    def load(cls, folder: str | Path, model: str) -> "ReadOuts":
        """What `save` wrote, for the model with this fingerprint; read-outs of another one, and a missing or damaged
        file, are an `InputError`."""
        folder, fix = Path(folder), "learn the read-outs again"
        if not (folder / "readouts.json").is_file():
            raise InputError(f"{folder}: no read-outs there (no readouts.json); name a folder of --save-readouts")
        with as_written(folder / "readouts.json", "not of read-outs", fix):
            about = read_json(folder / "readouts.json")
            layers, pooling, size = [int(layer) for layer in about["layers"]], about["pooling"], about["hidden_size"]
            count, own = len(layers), str(about["model"])
            wide, shapes = (count, size), {"bias": (count,), "gate": (count, count), "level": (1,)}
            shapes |= {"weights": wide, "center": wide, "scale": wide}
            like = {name: torch.empty(shape) for name, shape in shapes.items()}
        if own != model:
            raise InputError(f"{folder}: read-outs of another model (hash mismatch); {fix} with this one")
        found = read_tensors(folder / "readouts.safetensors", like, fix)
        tensors = {name: found[name].float() for name in like}
        if not all(value.isfinite().all() for value in tensors.values()) or not (tensors["scale"] > 0).all():
            raise InputError(f"{folder}: holds numbers that no read-out has (not finite, or a scale of 0); {fix}")
        return cls(layers, pooling, own, tensors)


def learn_readouts(
    chosen: Tensor, rejected: Tensor, layers: Sequence[int], pooling: str, model: str, seed: int = 0, **learning
) -> ReadOuts:
    """Read-outs learned from the states (N, L, H) of the better and of the worse answers of N labelled pairs.

    `layers`, `pooling` and `model` as in `ReadOuts`; `learning` as in `ReadOuts.learn`. More than `MOST_PAIRS` pairs,
    none, and sides of different shapes are an `InputError`.
    """
    if chosen.shape != rejected.shape or chosen.dim() != 3 or chosen.shape[1] != len(layers):
        raise InputError(f"states: {tuple(chosen.shape)} and {tuple(rejected.shape)}; give (pairs, layers, size) each")
    if not 1 <= len(chosen) <= MOST_PAIRS:
        raise InputError(f"labelled pairs: {len(chosen)}; read-outs are learned from 1 to {MOST_PAIRS}")
    readouts = ReadOuts.blank(layers, pooling, model, torch.cat([checked_states(chosen), checked_states(rejected)]))
    readouts.learn(chosen, rejected, seed=seed, **learning)
    return readouts


def checked_states(states: Tensor) -> Tensor:
    """The same (N, L, H) in float32, if all are finite; else a `RowError`."""
    if not states.isfinite().all():
        row = int((~states.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        raise RowError("the states of {row} are not finite; check the model's weights", row)
    return states.float()
