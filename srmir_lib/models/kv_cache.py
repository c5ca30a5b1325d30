"""What a model has read, as key-value states, and transformers' caches for them: to fill, to read, to write with."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


def numbers_a_token(config) -> int:
    """How many numbers a token leaves in the keys and values of all layers, by the configuration of a causal model; 0
    where none is called attention."""
    text = config.get_text_config()
    if not hasattr(text, "num_attention_heads"):
        return 0
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    each = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * each


@dataclass
class PrefilledKV:
    """What the trunk made of B texts of at most T tokens."""

    keys: list[Tensor]  # per layer (B, heads, T, head size)
    values: list[Tensor]
    mask: Tensor  # (B, T) bool: which positions hold a token; padding may lie inside, between prompt and completion
    pooled: Tensor | None = None  # (B, H) hidden state of each text's last token, or a mean, if it was asked for

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, (B,)."""
        return self.mask.sum(dim=1)

    def __len__(self) -> int:
        return len(self.mask)


class StopForward(Exception):
    """The trunk has read what it was given, as far as it was asked to."""

    def __init__(self, hidden: Tensor | None = None):
        super().__init__()
        self.hidden = hidden  # (B, T, H) states of the layer that was asked for


class CaptureCache(Cache):
    """Takes the keys and values of one forward pass, behind those of the texts `at` (B,) of `before`, if there are any.

    They go into one block for all layers: pieces that are asked for layer by layer, between what a layer needs for a
    moment, would lie scattered in memory, and take the more of it the more batches there are.
    """

    def __init__(self, count: int, before: PrefilledKV | None, at: Tensor | None, stop: bool):
        """`count`: layers that will run; with `stop` the pass ends once the last of them has its keys and values."""
        super().__init__(layers=[DynamicLayer() for _ in range(count)])
        self.count, self.before, self.at, self.stop = count, before, at, stop
        self.start = 0 if before is None else before.mask.shape[1]
        self.keys = self.values = None  # (layers, B, heads, T, head size)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.start + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        if self.keys is None:
            rows, heads, width, size = key_states.shape
            shape = self.count, rows, heads, self.start + width, size
            self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.before is not None:
            keys[:, :, : self.start] = self.before.keys[layer_idx][self.at]
            values[:, :, : self.start] = self.before.values[layer_idx][self.at]
        keys[:, :, self.start :], values[:, :, self.start :] = key_states, value_states
        if self.stop and layer_idx == self.count - 1:
            raise StopForward
        return keys, values


class CacheView(DynamicLayer):
    """States that new tokens read and do not become part of, so that several passes may share them."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def as_cache(states: PrefilledKV) -> Cache:
    """Transformers' cache over given states, without a copy."""
    layers = []
    for keys, values in zip(states.keys, states.values, strict=True):
        layer = CacheView()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layers.append(layer)
    return Cache(layers=layers)
