"""Token by token: what transformers' `generate` says, in a loop where answers that have ended make room.

Answers differ in length: in a batch of many a quarter of all steps would be spent on rows that are over.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from srmir_lib.states import roomy

GONE = 4
"""Rows that are over leave a batch once they are at least one in so many: what is left has to be copied together."""


class GumbelNoise(LogitsProcessor):
    """Noise that makes the largest logit a sample: argmax(logit / temperature + Gumbel noise) is distributed as the
    softmax (Gumbel 1954; Maddison et al. 2014, section 2). Its random numbers are its own: what torch draws by itself
    comes from one generator for all threads.
    """

    def __init__(self, temperature: float, seed: str, device: torch.device):
        """`seed`: any text; the same one, the same noise."""
        self.temperature = temperature
        self.generator = torch.Generator(device).manual_seed(random.Random(seed).getrandbits(63))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, logits of the next token (rows, vocabulary), divided by the temperature, with noise."""
        return self.add(scores, torch.arange(len(scores), device=scores.device), len(scores))

    def add(self, scores: Tensor, rows: Tensor, count: int) -> Tensor:
        """The same for some `rows` of a batch of `count`: what others draw does not depend on which are left."""
        noise = scores.new_empty(count, scores.shape[1]).exponential_(generator=self.generator)
        return scores / self.temperature - noise[rows].log_()


@torch.no_grad()
def decode(
    policy,
    ids: Tensor,
    mask: Tensor,
    texts: Tensor,
    max_new_tokens: int,
    ends: Sequence[int],
    pad: int,
    noise: GumbelNoise | None = None,
) -> Tensor:
    """Answers (B, at most max_new_tokens) to the texts numbered `texts` (B,) of `ids` (N, T), which are padded on the
    left (`mask` is 0 there). A text that is to be answered several times is read once.

    The next token is the one with the largest logit, with `noise` if it is given. An answer ends with the first token
    that is one of `ends`; behind it is `pad`.
    """
    last = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
    said = ids.new_full((len(texts), max_new_tokens), pad)
    cache, positions = roomy(policy.config, max_new_tokens), (mask.cumsum(1) - 1).clamp(min=0)
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
