"""Build the base model from scratch: byte-level BPE, a Qwen2 of about a million parameters, in some minutes.

A curriculum, because tables without first-order signal (balanced verdicts) are a plateau for gradient descent: the
first updates read short rules of the town and their use, the rest reads everything. Conversations are packed into
rows; each sees only itself. Hidden matrices learn with Muon (Jordan et al. 2024), the rest with AdamW. The result is
an ordinary Hugging Face folder, cached under the hash of everything that made it.
"""

import hashlib
import inspect
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from srmir_lib.artifacts import atomic_path
from srmir_lib.data import pairs
from srmir_lib.lab import corpus as corpus_module
from srmir_lib.lab import grammar, tasks
from srmir_lib.lab import muon as muon_module
from srmir_lib.lab import world as world_module
from srmir_lib.lab.corpus import CURRICULUM, MIX, NEITHER, corpus
from srmir_lib.lab.muon import Muon
from srmir_lib.lab.world import World
from srmir_lib.models import small as small_models
from srmir_lib.models.small import build_tokenizer, small_model

ROW = 256  # tokens in a packed row


def encode(tokenizer, conversations: Sequence[list[dict]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each conversation, and labels only on the last thing that the assistant says (and its `<|end|>`): an
    answer that is judged afterwards is read and not imitated."""
    texts = [message["content"] + "<|end|>" for talk in conversations for message in talk]
    bodies = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    heads = {role: tokenizer.encode(f"<|{role}|>", add_special_tokens=False) for role in ("user", "assistant")}
    encoded = []
    for talk in conversations:
        ids, labels = [], []
        for message in talk:
            head, body = heads[message["role"]], next(bodies)
            ids += head + body
            labels += [-100] * (len(head) + len(body))
        labels[-len(body) :] = body
        encoded.append((ids, labels))
    return encoded


def whole_words(talk: list[dict]) -> list[dict]:
    """A conversation without the text in it that is no answer (`corpus.NEITHER`): fragments of its slurred words would
    become tokens, which words that are held out would then be read as."""
    return [message for place, message in enumerate(talk) if not (place == 1 and talk[-1]["content"] == NEITHER)]


def pack(conversations: list[tuple[list[int], list[int]]], rows: int) -> dict[str, torch.Tensor]:
    """Exactly `rows` rows of `ROW` tokens: ids, labels, positions that restart and the number of the conversation.

    Raises a `ValueError` when the conversations do not fill the rows.
    """
    packed, row = [], []
    for number, (ids, labels) in enumerate(conversations):
        piece = list(zip(ids, labels, range(len(ids)), [number] * len(ids), strict=True))[:ROW]
        if len(row) + len(piece) > ROW:
            packed.append(row + [(0, -100, 0, -1)] * (ROW - len(row)))
            row = []
        row += piece
        if len(packed) == rows:
            break
    if len(packed) < rows:
        raise ValueError(f"{len(conversations)} conversations fill {len(packed)} rows of {rows}")
    table = torch.tensor(packed)
    return {name: table[:, :, i] for i, name in enumerate(("input_ids", "labels", "position_ids", "conversation"))}


def training_batches(world: World, tokenizer, steps: int, rows: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """The curriculum, an update a batch: two thirds of `rows` while it reads rules, whole batches of everything."""
    batches, before = [], 0.0
    for share, mix in CURRICULUM:
        count = round((before + share) * steps) - round(before * steps)
        before += share
        if not count:  # of very few updates none may be left for a part
            continue
        size = rows if mix is MIX else max(1, 2 * rows // 3)
        some = encode(tokenizer, list(corpus(world, 500, f"{seed}-lengths", mix)))
        # A fifth more than by the mean length: rows end where the next conversation does not fit.
        enough = 1.2 * count * size * ROW / (sum(len(ids) for ids, _ in some) / len(some))
        talk = corpus(world, int(enough) + 40, f"{seed}-{len(batches)}", mix)
        table = pack(encode(tokenizer, list(talk)), count * size)
        parts = {name: values.split(size) for name, values in table.items()}
        batches += [{name: parts[name][i] for name in parts} for i in range(count)]
    return batches


def build_base_model(
    world: World,
    folder: str | Path,
    steps: int,
    rows: int = 12,
    hidden_size: int = 128,
    layers: int = 4,
    seed: int = 0,
) -> Path:
    """Train the base model of a town and save it as a Hugging Face folder (model and tokenizer), atomically.

    `steps` updates of `rows` x 256 tokens each, of two thirds of it while it reads rules; deterministic given the
    arguments and the number of threads.
    """
    talks = corpus(world, 6000, f"{seed}-words", MIX, framed=0.0)
    sample = [message["content"] for talk in talks for message in whole_words(talk)]
    tokenizer = build_tokenizer(sample, vocabulary=1280)  # a token for nearly every word of the town
    batches = training_batches(world, tokenizer, steps, rows, seed)
    model = small_model(tokenizer, hidden_size, layers, seed)
    train(model, batches)
    with atomic_path(folder) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return Path(folder)


def train(model, batches: list[dict[str, torch.Tensor]]) -> None:
    """An update a batch: linear warm-up, constant, then linear decay over the second half."""
    steps = len(batches)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        Muon(matrices, lr=0.01, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(others, lr=6e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: max(0.02, min(1.0, (s + 1) / 20, (steps - s) / (0.5 * steps))))
        for o in optimizers
    ]
    causal = torch.ones(ROW, ROW, dtype=torch.bool).tril()
    itself = torch.eye(ROW, dtype=torch.bool)
    model.train()
    live, started = sys.stderr.isatty(), time.monotonic()
    bar = tqdm(batches, desc="base model", disable=not live)
    for step, batch in enumerate(bar):
        talk = batch["conversation"]
        same = (talk[:, None, :] == talk[:, :, None]) & causal | itself
        loss = labelled_loss(model, batch, same[:, None])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if not live and (step + 1) % max(1, steps // 5) == 0:
            print(f"base model: step {step + 1}/{steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")
    model.eval()


def labelled_loss(model, batch: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """The model's own loss, with logits only where there is a label to predict: a third of all tokens."""
    read = {name: batch[name] for name in ("input_ids", "position_ids")}
    hidden, labels = model.base_model(**read, attention_mask=mask).last_hidden_state[:, :-1], batch["labels"][:, 1:]
    asked = labels != -100
    return cross_entropy(model.get_output_embeddings()(hidden[asked]), labels[asked])


def cached_base_model(world: World, cache: str | Path, steps: int, seed: int = 0, **shape) -> Path:
    """The base model of a town, built once: the cache key is the hash of the town, the settings and the code."""
    modules = (world_module, grammar, tasks, corpus_module, muon_module, small_models, sys.modules[__name__])
    sources = [inspect.getsource(module) for module in modules] + [inspect.getsource(pairs.corrupt), pairs.CORRUPTIONS]
    beliefs = [sorted(world.mistaken), world.telling, world.judged]
    key = json.dumps([world.facts(), beliefs, steps, seed, shape, sources])
    folder = Path(cache) / f"lab-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        build_base_model(world, folder, steps=steps, seed=seed, **shape)
    return folder


def copy_model(folder: str | Path, target: str | Path) -> Path:
    """Copy a model folder, atomically, so that a stage's outputs do not depend on the cache."""
    with atomic_path(target) as fresh:
        shutil.copytree(folder, fresh)
    return Path(target)
