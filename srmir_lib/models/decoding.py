"""Our own decoding loop, for speed: a prompt that is asked several times is read once, and so is a long beginning that
prompts have in common; answers that are over leave the batch, and keys and values go into memory that is there
beforehand. `generate` takes it for the models in `DECODED`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from srmir_lib.models.batching import BATCH_TOKENS

DECODED = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models that `generate` lets speak by `decode` (tested); others by transformers' own `generate`."""


COMMON = 64
"""A beginning of so many tokens that all texts of a batch have in common is read once, as worked examples are."""


GONE = 4
"""Rows that are over leave a batch once they are at least one in so many: what is left has to be copied together."""


@torch.no_grad()
def decode(
    policy,
    ids: Tensor,
    mask: Tensor,
    texts: Tensor,
    max_new_tokens: int,
    ends: Sequence[int],
    pad: int,
    noise=None,
) -> Tensor:
    """Answers (B, at most max_new_tokens) to the texts numbered `texts` (B,) of `ids` (N, T), which are padded on the
    left (`mask` is 0 there). A text that is to be answered several times is read once.

    The next token is the one with the largest logit, with `noise` if it is given. An answer ends with the first token
    that is one of `ends`; behind it is `pad`.
    """
    last = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
    said = ids.new_full((len(texts), max_new_tokens), pad)
    common = common_beginning(ids, mask)
    cache = preallocated(policy.config, 1 if common else len(ids), ids.shape[1] + max_new_tokens)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if common:
        policy.base_model(input_ids=ids[:1, mask[0] == 1][:, :common], past_key_values=cache, use_cache=True)
        cache.batch_select_indices(ids.new_zeros(len(ids)))
        own = mask[:, : ids.shape[1] - common]  # where a row begins there, it goes on behind the common beginning here
        ids, positions = ids[:, common:], common + (own.cumsum(1) - 1).clamp(min=0)
        mask = torch.cat([own.new_ones(len(own), common), own], dim=1)
    rows, over = torch.arange(len(texts), device=ids.device), texts.new_zeros(len(texts), dtype=torch.bool)
    for step in range(max_new_tokens):
        logits = (read_in_parts if step == 0 else next_logits)(policy, cache, ids, mask, positions)
        if step == 0 and not torch.equal(texts, torch.arange(len(ids), device=ids.device)):
            cache.batch_select_indices(texts)
            logits, mask, positions = logits[texts], mask[texts], positions[texts]
        scores = logits if noise is None else noise.add(logits, rows, len(texts))
        tokens = scores.argmax(dim=1).masked_fill(over, pad)
        said[rows, step] = tokens
        over = over | torch.isin(tokens, last)
        ended = int(over.sum())
        if ended == len(rows):
            return said[:, : step + 1]
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), positions[:, -1:] + 1
        if ended * GONE >= len(rows):
            left = (~over).nonzero()[:, 0]
            cache.batch_select_indices(left)
            rows, tokens, mask, positions, over = (part[left] for part in (rows, tokens, mask, positions, over))
        ids = tokens.unsqueeze(1)
    return said


def next_logits(policy, cache: Cache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Logits (B, V) of the token behind new ones `ids` (B, T), which the cache takes in; `mask` (B, L), L >= T.

    Of the last states alone, in one product: for `logits_to_keep=1` torch copies the head's matrix for every row.
    """
    read = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    last = policy.base_model(**read, use_cache=True).last_hidden_state[:, -1]
    return policy.get_output_embeddings()(last).float()


def read_in_parts(policy, cache: Cache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """`next_logits` of texts in parts of at most `BATCH_TOKENS` tokens, each without the padding that all its rows
    begin with: the longest prompt of a batch sets neither its memory nor its time. A cache that cannot be written in
    parts (sliding windows) takes all at once."""
    width, behind = ids.shape[1], mask.shape[1]
    if not all(isinstance(layer, PreallocatedLayer) for layer in cache.layers):
        return next_logits(policy, cache, ids, mask, positions)
    lengths, logits = mask[:, behind - width :].sum(1).tolist(), []
    for part in parts_of(lengths, BATCH_TOKENS):
        own = max(lengths[part])
        for layer in cache.layers:
            layer.take(part, behind - own)
        read = ids[part, width - own :], mask[part], positions[part, width - own :]
        logits.append(next_logits(policy, cache, *read))
    for layer in cache.layers:
        layer.take(slice(None), behind)
    return torch.cat(logits)


def parts_of(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Consecutive rows of at most so many tokens together with their padding; a row that is longer is alone."""
    parts, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and longest * (row + 1 - start) > tokens:
            parts, start, longest = [*parts, slice(start, row)], row, length
    return [*parts, slice(start, len(lengths))]


def common_beginning(ids: Tensor, mask: Tensor) -> int:
    """How many tokens all texts (N, T), padded on the left, begin with alike, each with at least one more of its own; 0
    where they are fewer than `COMMON`, or there is but one text."""
    lengths = mask.sum(1)
    reach = int(lengths.min()) - 1
    if len(ids) < 2 or reach < COMMON:
        return 0
    begin = (ids.shape[1] - lengths).unsqueeze(1) + torch.arange(reach, device=ids.device)
    begun = ids.gather(1, begin)
    alike = int((begun == begun[:1]).all(0).long().cumprod(0).sum())
    return alike if alike >= COMMON else 0


class PreallocatedLayer(DynamicLayer):
    """Keys and values in one block of `count` rows with `places` for all tokens to come; transformers' own layer copies
    all that it has for every token that is added."""

    def __init__(self, count: int, places: int):
        super().__init__()
        self.count, self.places = count, places
        self.rows, self.end = slice(None), 0  # which rows are written, and where

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        _, heads, _, size = key_states.shape
        # zeros: a place that a mask hides is multiplied by nothing, and must be a number
        self.blocks = [key_states.new_zeros(self.count, heads, self.places, size) for _ in range(2)]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.end
        self.end += key_states.shape[2]
        for block, new in zip(self.blocks, (key_states, value_states), strict=True):
            block[self.rows, :, start : self.end] = new
        return self._shown()

    def take(self, rows: slice, end: int) -> None:
        """From now on, these rows are written and read, from place `end` on."""
        self.rows, self.end = rows, end
        if self.is_initialized:
            self._shown()

    def get_seq_length(self) -> int:
        return self.end

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order, and the places that are left; a row may come more than once."""
        blocks = []
        for block in self.blocks:
            blocks.append(block.new_zeros(len(indices), *block.shape[1:]))
            blocks[-1][:, :, : self.end] = block[indices, :, : self.end]
        self.blocks = blocks
        self._shown()

    def _shown(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (block[self.rows, :, : self.end] for block in self.blocks)
        return self.keys, self.values


def preallocated(config, count: int, places: int) -> Cache:
    """The cache that transformers would take for a model of this configuration, its plain layers in one block each."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [
        PreallocatedLayer(count, places) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
