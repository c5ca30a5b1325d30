"""A random 2-layer BERT that reads a handful of words, for tests of encoders."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from srmir_lib.reward_models.pooled import EncoderSettings

WORDS = ["how", "why", "when", "can", "you", "do", "it", "sorry", "no", "i", "cannot", "help", "sure", "here"]
WORDS += ["is", "first", "take", "this", "then", "that", "now", "end"]

ENCODER = EncoderSettings(
    epochs=1,
    batch_size=8,
    learning_rate=3e-3,
    head_learning_rate=1e-2,
    layer_decay=0.9,
    warmup=0.1,
    weight_decay=0.01,
    pair_weight=0.5,
    mean_weight=0.3,
    averaging=0.5,
    bf16=False,
)


def write_tiny_bert(folder: Path) -> Path:
    """Write the model (hidden 32, at most 64 tokens, two outputs) and its word-level tokenizer to `folder`."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "…", *WORDS]
    tokenizer = BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
