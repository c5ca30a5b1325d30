"""What a model has read, as key-value states, and transformers' caches for them: to fill, to read, to write with."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass
class PrefilledKV:
    """What the trunk made of B texts of at most T tokens."""

    keys: list[Tensor]  # per layer (B, heads, T, head size), or longer, with room for later tokens behind the T
    values: list[Tensor]
    mask: Tensor  # (B, T) bool: which positions hold a token; padding may lie inside, between prompt and completion
    pooled: Tensor | None = None  # (B, H) hidden state of each text's last token, or a mean, if it was asked for

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, (B,)."""
        return self.mask.sum(dim=1)

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: Tensor, room: int | None = None) -> "PrefilledKV":
        """The states of some rows, in the order given; a row may come more than once. `room`: with so many places
        behind the text, if there are as many, else none; by default as many as there are."""
        end = None if room is None else self.mask.shape[1] + room
        if room is not None and end > self.keys[0].shape[2]:
            end = self.mask.shape[1]
        keys, values = ([part[rows, :, :end] for part in parts] for parts in (self.keys, self.values))
        pooled = None if self.pooled is None else self.pooled[rows]
        return PrefilledKV(keys, values, self.mask[rows], pooled)


class StopForward(Exception):
    """The trunk has read what it was given, as far as it was asked to."""

    def __init__(self, hidden: Tensor | None = None):
        super().__init__()
        self.hidden = hidden  # (B, T, H) states of the layer that was asked for


class CaptureCache(Cache):
    """Takes the keys and values of one forward pass, behind those of the texts `at` (B,) of `before`, if there are any.

    They go into one block for all layers, with `room` behind them for so many later tokens. Pieces that are asked for
    layer by layer, between what a layer needs for a moment, would lie scattered in memory, and take the more of it the
    more batches there are.
    """

    def __init__(self, count: int, before: PrefilledKV | None, at: Tensor | None, stop: bool, room: int = 0):
        """`count`: layers that will run; with `stop` the pass ends once the last of them has its keys and values."""
        super().__init__(layers=[DynamicLayer() for _ in range(count)])
        self.count, self.before, self.at, self.stop, self.room = count, before, at, stop, room
        self.start = 0 if before is None else before.mask.shape[1]
        self.keys = self.values = None  # (layers, B, heads, T + room, head size)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.start + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        if self.keys is None:
            self.keys, self.values = self._block(key_states), self._block(value_states)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.before is not None:
            keys[:, :, : self.start] = self.before.keys[layer_idx][self.at, :, : self.start]
            values[:, :, : self.start] = self.before.values[layer_idx][self.at, :, : self.start]
        end = self.start + key_states.shape[2]
        keys[:, :, self.start : end], values[:, :, self.start : end] = key_states, value_states
        if self.stop and layer_idx == self.count - 1:
            raise StopForward
        return keys[:, :, :end], values[:, :, :end]

    def _block(self, new: Tensor) -> Tensor:
        rows, heads, width, size = new.shape
        return new.new_empty(self.count, rows, heads, self.start + width + self.room, size)


class Behind(torch.autograd.Function):
    """`apply(whole, new)`: `whole` with `new` (B, heads, m, head size) in its last m places. It is not copied and gets
    no gradient; what comes out is its memory under another name, for a change of `whole` itself, which is a view, would
    have autograd copy the gradient of all that it shows."""

    @staticmethod
    def forward(ctx, whole: Tensor, new: Tensor) -> Tensor:
        ctx.width = new.shape[2]
        filled = whole.data
        filled[:, :, -ctx.width :] = new
        return filled

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad[:, :, -ctx.width :]


class CacheView(DynamicLayer):
    """States that new tokens read and do not become part of, so that several passes may share them; with `room` for so
    many new tokens, one pass at a time."""

    room = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.room and self.room != key_states.shape[2]:
            raise ValueError(f"states with room for {self.room} tokens, {key_states.shape[2]} given; take them anew")
        if self.room:
            return Behind.apply(self.keys, key_states), Behind.apply(self.values, value_states)
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return super().get_seq_length() - self.room


def as_cache(states: PrefilledKV) -> Cache:
    """Transformers' cache over given states, without a copy."""
    layers = []
    for keys, values in zip(states.keys, states.values, strict=True):
        layer = CacheView()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values, layer.room = keys, values, keys.shape[2] - states.mask.shape[1]
        layers.append(layer)
    return Cache(layers=layers)


class RoomyLayer(DynamicLayer):
    """Keys and values in one block with `room` for the tokens to come; transformers' own layer copies all that it has
    for every token that is added. What comes behind the room is copied as there."""

    def __init__(self, room: int):
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.blocks = [self._block(new) for new in (key_states, value_states)]
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if end > self.blocks[0].shape[2]:
            return super().update(key_states, value_states, *args, **kwargs)
        for block, new in zip(self.blocks, (key_states, value_states), strict=True):
            block[:, :, start:end] = new
        self.keys, self.values = (block[:, :, :end] for block in self.blocks)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order, and the room that is left; a row may come more than once."""
        end, blocks = self.get_seq_length(), []
        if end > self.blocks[0].shape[2]:
            return super().batch_select_indices(indices)
        for block in self.blocks:
            _, heads, width, size = block.shape
            blocks.append(block.new_empty(len(indices), heads, width, size))
            blocks[-1][:, :, :end] = block[indices, :, :end]
        self.blocks = blocks
        self.keys, self.values = (block[:, :, :end] for block in blocks)

    def _block(self, new: Tensor) -> Tensor:
        rows, heads, width, size = new.shape
        return new.new_empty(rows, heads, width + self.room, size)


def roomy(config, room: int) -> Cache:
    """The cache that transformers would take for a model of this configuration, its plain layers with `room` for so
    many tokens."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
