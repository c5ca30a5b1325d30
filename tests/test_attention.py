"""Attention by groups of heads is torch's own, for one new token behind texts of different lengths."""

import copy

import pytest
import torch
from tiny_models import write_model
from transformers import AutoModelForCausalLM

from srmir_lib.models.attention import NAME, decode_by_groups, grouped_attention
from srmir_lib.models.generation import generate
from srmir_lib.models.loading import load_policy, load_tokenizer


def naive(query, key, value, mask):
    """Head by head, row by row: softmax(q k / sqrt(width)) v over what the mask shows."""
    rows, heads, _, width = query.shape
    out = torch.zeros(rows, 1, heads, width)
    for row in range(rows):
        for head in range(heads):
            group = head * key.shape[1] // heads
            scores = key[row, group] @ query[row, head, 0] / width**0.5
            weights = torch.where(mask[row, 0, 0], scores, torch.tensor(-torch.inf)).softmax(0)
            out[row, 0, head] = weights @ value[row, group]
    return out


@pytest.mark.parametrize("added", [False, True])
def test_one_token_by_hand(added):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 1, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    shown = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]).bool().view(3, 1, 1, 5)
    mask = torch.zeros(3, 1, 1, 5).masked_fill(~shown, torch.finfo(torch.float32).min) if added else shown
    found, weights = grouped_attention(torch.nn.Module(), query, key, value, mask)
    assert weights is None and torch.allclose(found, naive(query, key, value, shown), atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "mistral"])
def test_a_model_says_the_same(kind, tmp_path):
    folder = write_model(kind, tmp_path / kind)
    ours, plain = load_policy(folder, "cpu"), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert ours.config._attn_implementation == NAME and plain.config._attn_implementation == "sdpa"
    ids = torch.randint(5, 300, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :7] = 0, 0
    where = (mask.cumsum(1) - 1).clamp(min=0)
    logits = []
    for model in (ours, plain):
        with torch.no_grad():
            begun = model(ids[:, :8], attention_mask=mask[:, :8], position_ids=where[:, :8], use_cache=True)
            then = model(
                ids[:, 8:], attention_mask=mask, position_ids=where[:, 8:], past_key_values=begun.past_key_values
            )
        logits.append(then.logits)
    assert torch.allclose(*logits, atol=1e-5)
    tokenizer, prompts = load_tokenizer(folder), ["open the door", "help"]
    assert generate(ours, tokenizer, prompts, 8, seed=1) == generate(plain, tokenizer, prompts, 8, seed=1)


def test_heads_of_their_own_stay_with_torch(tmp_path):
    folder = write_model("llama", tmp_path / "llama", num_key_value_heads=4)
    model = load_policy(folder, "cpu")
    assert model.config._attn_implementation == "sdpa"
    other = copy.deepcopy(load_policy(write_model("llama", tmp_path / "grouped"), "cpu"))
    other.set_attn_implementation("eager")
    decode_by_groups(other)
    assert other.config._attn_implementation == "eager", "what somebody chose is left alone"
