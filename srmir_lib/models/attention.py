"""Attention of one new token on a processor, for models whose heads share keys and values (grouped-query attention).

There torch wants a copy of the keys and values for every head, or falls back to slow products in bfloat16: a token of
128 answers, with 450 tokens before it, took a model of 135 million weights eight seconds. Two plain matrix products a
group of heads need neither.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped"


def grouped_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0, **options
) -> tuple[Tensor, None]:
    """What `sdpa_attention_forward` returns, (B, T, heads, width), and None; computed by groups where T is 1.

    `query` (B, heads, T, width); `key`, `value` (B, groups, L, width); `attention_mask` (B, 1, T, L), bool or added.
    """
    rows, heads, new, width = query.shape
    groups = key.shape[1]
    if new > 1 or groups == heads or dropout or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **options)
    scale = options.get("scaling") or width**-0.5
    scores = (query.view(rows, groups, heads // groups, width) @ key.transpose(2, 3)).float() * scale
    if attention_mask is not None:
        hidden = attention_mask.logical_not() if attention_mask.dtype == torch.bool else None
        scores = scores + attention_mask if hidden is None else scores.masked_fill(hidden, float("-inf"))
    said = scores.softmax(-1).to(value.dtype) @ value
    return said.view(rows, 1, heads, width), None


def decode_by_groups(model) -> None:
    """Have a causal model on a processor attend so, if its heads share keys and values and it attends by torch's kernel
    now."""
    config = model.config.get_text_config(decoder=True)
    heads, groups = (getattr(config, f"num_{of}_heads", None) for of in ("attention", "key_value"))
    if groups not in (None, heads) and config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
