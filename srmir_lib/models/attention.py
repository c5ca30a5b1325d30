"""Attention of a few new tokens on a processor, for models whose heads share keys and values (grouped-query attention).

There torch wants a copy of the keys and values for every head, or falls back to slow products in bfloat16: a token of
128 answers, with 450 tokens before it, took a model of 135 million weights eight seconds. Two plain matrix products a
group of heads need neither, backwards as well. From some dozens of tokens on torch's own kernel is as fast.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped"
FEW = 32
"""New tokens that are attended by groups, at most: an answer's next one, or a question behind a text."""


def grouped_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0, **options
) -> tuple[Tensor, None]:
    """What `sdpa_attention_forward` returns, (B, T, heads, width), and None; by groups where T is small.

    `query` (B, heads, T, width); `key`, `value` (B, groups, L, width); `attention_mask` (B, 1, T, L), bool or added. A
    token that is shown nothing, which is padding, attends to all alike.
    """
    rows, heads, new, width = query.shape
    groups = key.shape[1]
    causal = new > 1 and attention_mask is None
    if new > FEW or causal or groups == heads or dropout or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **options)
    scale = options.get("scaling") or width**-0.5
    together = query.reshape(rows, groups, -1, width) @ key.transpose(2, 3)  # of a group, all heads' tokens at once
    scores = together.float().view(rows, heads, new, -1) * scale
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1).to(value.dtype).view(together.shape)
    return (weights @ value).view(query.shape).transpose(1, 2), None


def decode_by_groups(model) -> None:
    """Have a causal model on a processor attend so, if its heads share keys and values and it attends by torch's kernel
    now."""
    config = model.config.get_text_config(decoder=True)
    heads, groups = (getattr(config, f"num_{of}_heads", None) for of in ("attention", "key_value"))
    if groups not in (None, heads) and config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
