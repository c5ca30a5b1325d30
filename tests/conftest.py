"""Shared fixtures: a tiny random Qwen2 with a real byte-level BPE tokenizer and chat template."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from srmir_lib.models.trunk import Trunk

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")  # a slow first example is no error

LONGEST = ("test_smoke.py", "test_own_data.py", "test_chat_series.py", "test_realdata.py")


def pytest_collection_modifyitems(items: list) -> None:
    """The longest files come first: none is left for one core alone when all else is done."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = [
    "please help me, I can not answer that because it would hurt someone.",
    "first get ready, then open the red door, then check that it is done.",
    "you are right, here is what to say to the quiet neighbour instead.",
    "harmful, danger; rights #### yes 1 2 3 4 5 6 7 8 9 0",
] * 4


def tiny_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE with about 320 tokens, in the class that `AutoTokenizer` picks for a Qwen2 folder."""
    empty = Qwen2Tokenizer(unk_token="<|pad|>", eos_token="<|end|>", pad_token="<|pad|>").backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = empty.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<|pad|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=SPECIAL_TOKENS[2:],
        padding_side="left",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a random 2-layer Qwen2 (hidden 32) and its tokenizer to `folder`."""
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trunk(tiny_model) -> Trunk:
    """`tiny_model` in memory; whoever counts drafts loads one of its own."""
    return Trunk.load(tiny_model, "cpu")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder with a random 2-layer Qwen2 (hidden 32), a byte-level BPE tokenizer and a chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
