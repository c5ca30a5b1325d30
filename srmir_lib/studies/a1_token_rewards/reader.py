"""What token rewards read: answers behind their prompts, and each prompt as the frozen base model left it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from srmir_lib.artifacts import digest
from srmir_lib.conversations import conversation_ids, text_of, user_message
from srmir_lib.data.introspection import Introspector
from srmir_lib.errors import InputError
from srmir_lib.models.kv_cache import PrefilledKV
from srmir_lib.models.trunk import Trunk


class Answers(NamedTuple):
    """Tokenized answers: what the frozen trunk reads before, and the generation prompt with the answer behind it."""

    prompts: list[list[int]]
    tails: list[list[int]]

    def select(self, rows: Sequence[int]) -> "Answers":
        """The answers `rows`, in that order."""
        return Answers([self.prompts[row] for row in rows], [self.tails[row] for row in rows])

    def sha256(self) -> str:
        """Of all tokens, in order."""
        return digest(self)


def known_pairs(preferences: Mapping[str, Dataset], held_out: str) -> Dataset:
    """The training pairs but those of the category `held_out`. An `InputError` where it has none to hold out, or where
    no other category has pairs in train or validation."""
    if held_out not in preferences["train"]["category"]:
        raise InputError(f"held_out: no training pair is of category {held_out!r}; name another one")
    for split in ("train", "validation"):
        if {*preferences[split]["category"]} <= {held_out}:
            raise InputError(f"held_out: no pair of {split} is of another category than {held_out!r}; name another one")
    return preferences["train"].filter(lambda row: row["category"] != held_out)


class Reader:
    """A frozen causal model that drafts, tokenizes, and reads each distinct prompt once for any number of models."""

    def __init__(self, trunk: Trunk, question: str, max_length: int, draft_tokens: int = 24, keep_gb: float = 1.5):
        """`question` holds {prompt} and is asked before scoring, for `draft_tokens` at most; "" asks nothing.

        `max_length`: tokens of the longest conversation. `keep_gb`: states of prompts in memory at most; the rest is
        read again.
        """
        self.trunk, self.max_length = trunk, max_length
        self.introspect = Introspector(trunk, question, draft_tokens)
        self.invocation = invocation_tokens(trunk.tokenizer)
        self.opening, self.spare, self.cached = len(self.invocation), keep_gb * 1e9, {}
        self.lock = Lock()

    @classmethod
    def load(cls, base_model: str | Path, device: str, question: str, max_length: int) -> "Reader":
        """A reader with a base model of its own."""
        return cls(Trunk.load(base_model, device), question, max_length)

    def answers(self, prompts: Sequence, completions: Sequence, allow_empty: bool = False) -> Answers:
        """Texts or conversations -> `Answers`. Empty ones (if not allowed) and too long ones are an `InputError`."""
        if len(prompts) != len(completions):
            raise InputError(f"completions: {len(completions)} for {len(prompts)} prompts; give one for each")
        for row, completion in enumerate(completions):
            if not (allow_empty or text_of(completion).strip()):
                raise InputError(f"completions: the answer of row {row} is empty; leave the row out")
        chats = self.introspect(prompts)
        before = conversation_ids(self.trunk.tokenizer, chats)
        whole = conversation_ids(self.trunk.tokenizer, chats, completions)
        for row, (start, ids) in enumerate(zip(before, whole, strict=True)):
            if ids[: len(start)] != start:
                raise InputError(f"row {row}: the chat template changes the prompt once it is answered; use another")
            if len(ids) > self.max_length:
                raise InputError(f"row {row}: {len(ids)} tokens exceed max_length {self.max_length}; raise it")
        cuts = [len(start) - self.opening for start in before]
        split = list(zip(whole, cuts, strict=True))
        return Answers([ids[:cut] for ids, cut in split], [ids[cut:] for ids, cut in split])

    def pairs(self, pairs) -> Answers:
        """Preference rows (prompt, chosen, rejected) -> their chosen answers, then their rejected ones: 2 N rows."""
        return self.answers([*pairs["prompt"], *pairs["prompt"]], [*pairs["chosen"], *pairs["rejected"]])

    def read(self, prompts: Sequence[list[int]]) -> PrefilledKV:
        """The states of `prompts` (token ids), in that order; one may come twice. Fits may ask side by side."""
        keys, found = [tuple(prompt) for prompt in prompts], {}
        with self.lock:
            new = [key for key in dict.fromkeys(keys) if key not in self.cached]
            for rows, states in self.trunk.prefill([list(key) for key in new]) if new else ():
                layers = torch.stack([*states.keys, *states.values])  # (2 L, B, heads, T, size)
                for place, row in enumerate(rows):
                    found[new[row]] = layers[:, place][:, :, states.mask[place]].permute(2, 0, 1, 3).contiguous()
            texts = [self.cached[key] if key in self.cached else found[key] for key in keys]
            for key, text in found.items():
                self.spare -= text.nbytes
                if self.spare >= 0:
                    self.cached[key] = text
        layers = pad_sequence(texts, batch_first=True).permute(2, 0, 3, 1, 4)
        lengths = torch.tensor([len(text) for text in texts], device=layers.device)
        mask = torch.arange(layers.shape[3], device=layers.device) < lengths.unsqueeze(1)
        half = len(layers) // 2
        return PrefilledKV(list(layers[:half]), list(layers[half:]), mask)


def invocation_tokens(tokenizer) -> list[int]:
    """The tokens of the template's generation prompt: the answer begins behind them."""
    chat, options = user_message("x"), {"return_dict": False}
    before = tokenizer.apply_chat_template(chat, **options)
    after = tokenizer.apply_chat_template(chat, add_generation_prompt=True, **options)
    if after[: len(before)] != before or len(after) == len(before):
        raise InputError("chat template: it has no generation prompt, so nothing tells where an answer begins")
    return after[len(before) :]
