"""Random models of many architectures with two layers, in folders as transformers writes them."""

from pathlib import Path

import torch
from conftest import CORPUS
from tiny_bert import write_tiny_bert
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from srmir_lib.models.small import build_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "d_ff": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
"""Entries of a configuration, of which each architecture has some."""


def tiny_words(**options):
    """A byte-level tokenizer with a chat template; `options`: attributes to set, such as eos_token=None."""
    tokenizer = build_tokenizer(CORPUS, vocabulary=320, max_length=256)
    for name, value in options.items():
        setattr(tokenizer, name, value)
    return tokenizer


def write_model(kind: str, folder: Path, tokenizer=None, **changes) -> Path:
    """Write a model of a type ("llama", "t5", …) and its tokenizer; `changes` of its configuration."""
    if kind == "bert":
        return write_tiny_bert(folder)
    tokenizer = tokenizer or tiny_words()
    known = AutoConfig.for_model(kind)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)} | changes
    sizes = {known.attribute_map.get(name, name): value for name, value in sizes.items()}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **(special | sizes))
    torch.manual_seed(0)
    written = (AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM).from_config(config)
    written.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
