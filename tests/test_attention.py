"""Attention by groups of heads is torch's own, for a few new tokens behind texts of different lengths."""

import copy
import itertools

import pytest
import torch
from tiny_models import write_model
from transformers import AutoModelForCausalLM

from srmir_lib.models.attention import NAME, decode_by_groups, grouped_attention
from srmir_lib.models.generation import generate
from srmir_lib.models.loading import load_policy, load_tokenizer


def naive(query, key, value, mask):
    """Token by token, head by head, row by row: softmax(q k / sqrt(width)) v over what the mask shows."""
    rows, heads, new, width = query.shape
    out = []
    for row, at, head in itertools.product(range(rows), range(new), range(heads)):
        group, shown = head * key.shape[1] // heads, mask[row, 0, at]
        scores = key[row, group, shown] @ query[row, head, at] / width**0.5
        out.append(scores.softmax(0) @ value[row, group, shown])
    return torch.stack(out).view(rows, new, heads, width)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("new", [1, 3])
def test_a_few_tokens_by_hand(new, added):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, new, 4), torch.randn(3, 2, 7, 4), torch.randn(3, 2, 7, 4)
    shown = torch.rand(3, 1, new, 7) < 0.5
    shown[..., 2] = True
    mask = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min) if added else shown
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    found, weights = grouped_attention(torch.nn.Module(), *inputs, mask)
    expected = naive(*inputs, shown)
    assert weights is None and torch.allclose(found, expected, atol=1e-6)
    wanted = torch.randn(found.shape)
    slopes = [torch.autograd.grad((said * wanted).sum(), inputs) for said in (found, expected)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6), "gradients"


def test_padding_that_sees_nothing_stays_finite():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 3, 4)
    shown = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 1]]).bool().view(1, 1, 3, 3)
    found, _ = grouped_attention(torch.nn.Module(), query, key, key, shown)
    assert found.isfinite().all()
    assert torch.allclose(found[:, 1:], naive(query[:, :, 1:], key, key, shown[:, :, 1:]), atol=1e-6)


def test_many_tokens_and_unmasked_ones_stay_with_torch():
    key = torch.randn(1, 2, 40, 4)
    for new, mask in ((40, torch.ones(40, 40).tril().bool().view(1, 1, 40, 40)), (3, None)):
        query = torch.randn(1, 6, new, 4)
        said = torch.nn.functional.scaled_dot_product_attention(
            query, key[:, :, :new].repeat_interleave(3, 1), key[:, :, :new].repeat_interleave(3, 1), is_causal=True
        )
        module = torch.nn.Module()
        module.num_key_value_groups = 3
        found, _ = grouped_attention(module, query, key[:, :, :new], key[:, :, :new], mask)
        assert torch.allclose(found, said.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("begun", [8, 6])  # one new token, and three
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "mistral"])
def test_a_model_says_the_same(kind, begun, tmp_path):
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
            read = [part[:, :begun] for part in (ids, mask, where)]
            states = model(read[0], attention_mask=read[1], position_ids=read[2], use_cache=True).past_key_values
            then = model(ids[:, begun:], attention_mask=mask, position_ids=where[:, begun:], past_key_values=states)
        logits.append(then.logits[mask[:, begun:].bool()])  # what padding says is nobody's
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
