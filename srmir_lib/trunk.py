"""One frozen trunk, read once: token ids become key-value states that any number of probes can read.

Rows that share a prompt share its states: the trunk reads the prompt once and each completion once. The last layer
stops as soon as its keys and values are there, for nothing behind them is ever read. Micro-batches are sorted by
length and bounded in tokens, so that peak memory does not grow with the number of rows.
"""

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from srmir_lib.artifacts import InputError

LEAST_SHARED = 8
"""A common beginning of fewer tokens is not worth a forward pass of its own."""

SHARED_PART = 4
"""Beginnings in memory at a time take at most one in so many of a batch's tokens, or they would set the peak."""


@dataclass
class States:
    """What the trunk made of B texts of at most T tokens."""

    keys: list[Tensor]  # per layer (B, heads, T, head size)
    values: list[Tensor]
    mask: Tensor  # (B, T) bool: which positions hold a token; padding may lie inside, between prompt and completion
    last: Tensor | None = None  # (B, H) final hidden state of each text's last token, if it was asked for

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, (B,)."""
        return self.mask.sum(dim=1)

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, rows: Tensor) -> "States":
        """The states of some rows, in the order given; a row may come more than once."""
        last = self.last[rows] if self.last is not None else None
        return States([k[rows] for k in self.keys], [v[rows] for v in self.values], self.mask[rows], last)


class Read(Exception):
    """The last layer has its keys and values: the trunk has read what it was given."""


class LastLayer(DynamicLayer):
    """The cache of the last layer; ends the forward pass once it is filled."""

    def update(self, *args, **kwargs):
        super().update(*args, **kwargs)
        raise Read


class ReadOnlyLayer(DynamicLayer):
    """States that new tokens read and do not become part of, so that several passes may share them."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def cache_of(states: States, layer_class: type = DynamicLayer, last_class: type | None = None) -> Cache:
    """Transformers' cache over given states, without a copy."""
    layers = []
    for index, (keys, values) in enumerate(zip(states.keys, states.values, strict=True)):
        layer = (last_class if last_class and index == len(states.keys) - 1 else layer_class)()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layers.append(layer)
    return Cache(layers=layers)


def share_weights(model):
    """A second module tree over the very same parameters and buffers: what is done to one's modules (adapters, hooks,
    modes) leaves the other alone, and the weights are in memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def check_trunk(model) -> None:
    """Refuse a model whose states cannot be read by probes, with the reason and what to do."""
    config, name = model.config.get_text_config(), type(model).__name__
    if hasattr(model, "peft_config"):
        raise InputError(f"{name}: carries an adapter; give the base model, the trunk must read as it does")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    fix = "use design separate or pooled, or a decoder with full attention (Qwen2/3, Llama, Mistral)"
    if not any(word in name for word in ("CausalLM", "LMHead")):
        raise InputError(f"{name}: an encoder, or a model without a language-model head, keeps no cache; {fix}")
    if kinds - {"full_attention"} or not hasattr(config, "num_key_value_heads"):
        raise InputError(f"{name}: has {', '.join(sorted(kinds))}; probes must see every earlier token; {fix}")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        raise InputError(f"{name}: a sliding window of {window} tokens hides the prompt from the probes; {fix}")


class Trunk:
    """A frozen decoder that turns token ids into `States`."""

    def __init__(self, model, batch_tokens: int = 8192, hidden: bool = False):
        """`model`: a causal language model. `batch_tokens`: tokens in one forward pass at most (one row may have more).
        `hidden`: also keep the last token's final hidden state, for which the last layer must run to its end."""
        check_trunk(model)
        self.decoder, self.batch_tokens, self.hidden = model.base_model, batch_tokens, hidden
        self.config = model.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @torch.no_grad()
    def read(self, ids: Sequence[list[int]], groups: Sequence[Hashable] | None = None) -> Iterator[tuple[list, States]]:
        """Yield (rows, `States`) until every row of `ids` was read once; in order of length, not of rows.

        `groups` names what rows may share (their prompt, say): what the rows of a group have in common at their
        beginning is read once. The result does not depend on it, nor on what else is in the batch.
        """
        limit = getattr(self.config, "max_position_embeddings", None)
        for row, tokens in enumerate(ids):
            if not tokens or (limit is not None and len(tokens) > limit):
                raise InputError(f"row {row}: {len(tokens)} tokens, but the trunk reads 1 to {limit}")
        shared = shared_lengths(ids, groups) if groups is not None else [0] * len(ids)
        alone = [row for row in range(len(ids)) if not shared[row]]
        for rows in batches(alone, [len(tokens) for tokens in ids], self.batch_tokens):
            yield rows, self._forward([ids[row] for row in rows])
        members: dict[Hashable, list[int]] = {}
        for row in range(len(ids)):
            if shared[row]:
                members.setdefault(groups[row], []).append(row)
        keys = list(members)
        starts = [shared[members[key][0]] for key in keys]
        for chunk in batches(range(len(keys)), starts, self.batch_tokens // SHARED_PART):
            prefix = self._forward([ids[members[keys[at]][0]][: starts[at]] for at in chunk])
            of = {row: place for place, at in enumerate(chunk) for row in members[keys[at]]}
            rest = [len(tokens) - start for tokens, start in zip(ids, shared, strict=True)]
            for rows in batches(of, rest, self.batch_tokens):
                before = prefix.take(torch.tensor([of[row] for row in rows], device=self.device))
                yield rows, self._forward([ids[row][shared[row] :] for row in rows], before)

    def _forward(self, ids: Sequence[list[int]], before: States | None = None) -> States:
        """Read texts, or what follows the texts of `before`; padded on the right, with explicit positions."""
        lengths = torch.tensor([len(tokens) for tokens in ids], device=self.device)
        width = int(lengths.max())
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=self.device)
        place, end = torch.arange(width, device=self.device).unsqueeze(0), lengths.unsqueeze(1)
        new, positions = place < end, torch.minimum(place, end - 1)
        if before is not None:
            positions = positions + before.lengths.unsqueeze(1)
        mask = torch.cat([before.mask, new], dim=1) if before is not None else new
        stop = None if self.hidden else LastLayer
        cache = self._empty(stop) if before is None else cache_of(before, DynamicLayer, stop)
        inputs = {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": positions}
        last = None
        with suppress(Read):
            output = self.decoder(**inputs, past_key_values=cache, use_cache=True)
            last = output.last_hidden_state[torch.arange(len(ids), device=self.device), lengths - 1]
        return States([layer.keys for layer in cache.layers], [layer.values for layer in cache.layers], mask, last)

    def _empty(self, last_class: type | None) -> Cache:
        count = self.config.num_hidden_layers
        return Cache(layers=[*(DynamicLayer() for _ in range(count - 1)), (last_class or DynamicLayer)()])


def shared_lengths(ids: Sequence[list[int]], groups: Sequence[Hashable]) -> list[int]:
    """How many tokens each row has in common with all others of its group, at the beginning; 0 if alone or too few.

    At least one token of every row stays its own.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    lengths = [0] * len(ids)
    for rows in members.values():
        common = min(len(ids[row]) - 1 for row in rows)
        for left, right in pairwise(rows):
            common = min(common, len(os.path.commonprefix([ids[left][:common], ids[right][:common]])))
        if len(rows) > 1 and common >= LEAST_SHARED:
            for row in rows:
                lengths[row] = common
    return lengths


def batches(rows: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows in order of length, cut where a padded batch would exceed `batch_tokens`; the longest batches come first."""
    order = sorted(rows, key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count
