"""A person's own pairs and a base model: how long they are for it, and the folders and the router that 01 writes."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict

from srmir_lib.conversations import conversation_ids
from srmir_lib.data.jsonl import chunked, rows_of
from srmir_lib.data.own_files import OwnPairs, own_pairs
from srmir_lib.data.router import PromptEncoder, Router, fit_router, router_accuracy
from srmir_lib.errors import InputError
from srmir_lib.models.kinds import is_causal
from srmir_lib.models.loading import config_of, precision, read_tokenizer, resolve_encoder

TOO_LONG = "longer than the model reads"

ROOM = 64
"""Tokens that a pair leaves free in what the model reads, for a question behind it."""


def own_data(
    source: str | Path, base_model: str | Path, seed: int, device: str
) -> tuple[dict[str, DatasetDict], Router, dict[str, dict[str, float]]]:
    """The folders `preferences`, `prompts` and `demonstrations`, a router to the categories, and numbers.

    The router reads what the base model makes of a prompt; with one category it sends all to that. The numbers:
    `router`, how often a test prompt reaches its category, by category and of all, beside the share of the largest;
    `left_out`, pairs that were, by reason.
    """
    base_model = resolve_encoder(base_model)
    pairs, config = own_pairs(source, seed), config_of(base_model)
    if is_causal(config):
        pairs = fitting(pairs, longest(config), token_counts(read_tokenizer(base_model), pairs))
    if pairs.problem:
        raise InputError(f"{source}: {pairs.problem}")
    folders = {
        name: DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
        for name, splits in pairs.tables().items()
    }
    how = {"dtype": precision(base_model, device)} if is_causal(config) else {"pooling": "mean"}
    reader, prompts = PromptEncoder(base_model=base_model, **how), folders["prompts"]
    router = fit_router(prompts, reader, pairs.categories, device, rejected_share=0.02)
    found, largest = router_accuracy(router, prompts["test"]), Counter(prompts["test"]["category"]).most_common(1)[0][1]
    found |= {"all prompts": found.pop("mean"), "sent to no category": found.pop("unknown")}
    found["if all went to the largest"] = largest / len(prompts["test"])
    return folders, router, {"router": found, "left_out": dict(pairs.left_out)}


def longest(config) -> int | None:
    """Tokens that a model reads at most, by its configuration."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def token_counts(tokenizer, pairs: OwnPairs, chunk: int = 512) -> dict[tuple[str, int], int]:
    """Tokens of the longer answer of every pair with its prompt, in the chat template, by file and row."""
    counts = {}
    for rows in pairs.splits.values():
        for numbers, part in chunked(((row["row"], row) for row in rows), chunk):
            file, prompts = part[0]["file"], [row["prompt"] for row in part]
            with rows_of(file, numbers):
                sides = [conversation_ids(tokenizer, prompts, [row[s] for row in part]) for s in ("chosen", "rejected")]
            lengths = [max(map(len, both)) for both in zip(*sides, strict=True)]
            counts |= {(file, number): length for number, length in zip(numbers, lengths, strict=True)}
    return counts


def fitting(pairs: OwnPairs, limit: int | None, counts: Mapping[tuple[str, int], int]) -> OwnPairs:
    """The pairs that leave `ROOM` in `limit` tokens; the others are counted among those left out."""
    return pairs.only(lambda row: limit is None or counts[row["file"], row["row"]] + ROOM <= limit, TOO_LONG)
