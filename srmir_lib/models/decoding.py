"""Our own decoding loop, for speed: a prompt that is asked several times is read once, and so is a long beginning that
prompts have in common; answers that are over leave the batch, and keys and values go into memory that is there
beforehand. `generate` takes it for the models in `DECODED`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

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
    cache = preallocated(policy.config, max_new_tokens + (ids.shape[1] - common if common else 0))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if common:
        policy(input_ids=ids[:1, mask[0] == 1][:, :common], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_select_indices(ids.new_zeros(len(ids)))
        own = mask[:, : ids.shape[1] - common]  # where a row begins there, it goes on behind the common beginning here
        ids, positions = ids[:, common:], common + (own.cumsum(1) - 1).clamp(min=0)
        mask = torch.cat([own.new_ones(len(own), common), own], dim=1)
    rows, over = torch.arange(len(texts), device=ids.device), texts.new_zeros(len(texts), dtype=torch.bool)
    for step in range(max_new_tokens):
        read = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits = policy(**read, use_cache=True, logits_to_keep=1).logits[:, -1].float()
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
    """Keys and values in one block with `spare` places for the tokens to come; transformers' own layer copies all that
    it has for every token that is added."""

    def __init__(self, spare: int):
        super().__init__()
        self.spare = spare

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, width, size = key_states.shape
            self.blocks = [key_states.new_empty(rows, heads, width + self.spare, size) for _ in range(2)]
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        for block, new in zip(self.blocks, (key_states, value_states), strict=True):
            block[:, :, start:end] = new
        self.keys, self.values = (block[:, :, :end] for block in self.blocks)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order, and the places that are left; a row may come more than once."""
        end, blocks = self.get_seq_length(), []
        for block in self.blocks:
            blocks.append(block.new_empty(len(indices), *block.shape[1:]))
            blocks[-1][:, :, :end] = block[indices, :, :end]
        self.blocks = blocks
        self.keys, self.values = (block[:, :, :end] for block in blocks)


def preallocated(config, spare: int) -> Cache:
    """The cache that transformers would take for a model of this configuration, its plain layers with `spare` places
    for later tokens."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [PreallocatedLayer(spare) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
