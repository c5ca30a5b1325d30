"""Preference pairs as a frozen trunk has read them: read once, kept while they fit, given out in any order."""

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from threading import Lock

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from srmir_lib.data.introspection import Introspector
from srmir_lib.models.kv_cache import PrefilledKV
from srmir_lib.models.loading import fingerprint, load_policy, load_tokenizer, quiet, share_weights
from srmir_lib.models.trunk import Trunk, shared_lengths
from srmir_lib.reward_models.config import RewardSettings
from srmir_lib.reward_models.pairs import pair_targets, tokenize_pairs


class PrefilledPairs:
    """Preference pairs as a trunk has read them: each distinct text once, and a prompt's part once for all its texts.

    `select(rows)` pads what is asked for into `PrefilledKV`. Made once, it serves any number of `fit_shared` on the
    same pairs. States that do not fit into `keep_gb` are not kept, but read again when asked for.
    """

    def __init__(
        self,
        base_model,
        pairs,
        settings: RewardSettings,
        device: str = "auto",
        progress: str | None = None,
        hidden: bool = False,
    ):
        """`hidden`: keep each text's last state as well, so that a fit without a probe can use these states, too."""
        self.base_model, self.base_sha256 = base_model, fingerprint(base_model)
        self.tokenizer, self.hidden = load_tokenizer(base_model), hidden or settings.probe.kind == "head"
        with quiet():
            dtype = "bfloat16" if settings.bf16 else "float32"
            self.model = load_policy(base_model, device, dtype).requires_grad_(False)
        self.trunk = Trunk(self.model, settings.batch_tokens, -1 if self.hidden else None)
        think = Introspector(self.model, settings.question, settings.draft_tokens, tokenizer=self.tokenizer)
        self.reading = prefill_key(settings)
        self.pairs, self.data = pairs, tokenize_pairs(self.tokenizer, pairs, settings.max_length, think)
        self.sha256 = hashlib.sha256(json.dumps(self.data.to_dict()).encode()).hexdigest()
        self.texts: list[list[int]] = []
        self.groups: list[str] = []
        places: dict[tuple[int, ...], int] = {}
        self.rows = torch.zeros(len(self.data), 2, dtype=torch.long)  # where a pair's chosen and rejected text lie
        prompts = [str(prompt) for prompt in pairs["prompt"]]
        for side, name in enumerate(("chosen_ids", "rejected_ids")):
            for pair, tokens in enumerate(self.data[name]):
                at = places.setdefault(tuple(tokens), len(self.texts))
                if at == len(self.texts):
                    self.texts.append(tokens)
                    self.groups.append(prompts[pair])
                self.rows[pair, side] = at
        self.lengths = torch.tensor([len(text) for text in self.texts])
        self.shared = shared_lengths(self.texts, self.groups)
        self.places, self.count = self._places()
        self.kept, self.progress = self.bytes() <= settings.keep_gb * 1e9, progress
        self.tokens: list[Tensor] = []  # keys, then values, by layer: (tokens, heads, head size) each
        self.last: list[Tensor] = []  # one (texts, H), if hidden states are kept
        self.lock = Lock()  # twins share what is kept, and one of them reads it

    def _places(self) -> tuple[Tensor, int]:
        """Where each text's tokens lie among all that are kept, (texts, T), 0 behind its end; and how many those are.

        A beginning that several texts share is kept once.
        """
        places = torch.zeros(len(self.texts), int(self.lengths.max()), dtype=torch.long)
        begun: dict[str, int] = {}
        count = 0
        for row, (text, group, start) in enumerate(zip(self.texts, self.groups, self.shared, strict=True)):
            if start and group not in begun:
                begun[group] = count
                count += start
            if start:
                places[row, :start] = torch.arange(begun[group], begun[group] + start)
            places[row, start : len(text)] = torch.arange(count, count + len(text) - start)
            count += len(text) - start
        return places, count

    def bytes(self) -> int:
        """What keeping all states takes."""
        config, element = self.trunk.config, next(self.model.parameters()).element_size()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * element * self.count

    def with_own_modules(self) -> "PrefilledPairs":
        """The same states over a second module tree of the same weights, for a fit beside this one: what probes add to
        a tree's layers, every pass through them gets."""
        twin = copy(self)
        twin.model = share_weights(self.model)
        twin.trunk = Trunk(twin.model, self.trunk.batch_tokens, self.trunk.layer)
        return twin

    def target(self, settings: RewardSettings) -> Tensor | None:
        """What the objective wants of each reward gap, (N,) in score units: its margin, its limit, or nothing."""
        ids = self.data["chosen_ids"], self.data["rejected_ids"]
        return pair_targets(settings, self.pairs, *ids, (self.model, self.tokenizer))

    def keep(self) -> None:
        """Read and keep what fits; done at most once, and by the first `select` at the latest."""
        with self.lock:
            if self.kept and not self.tokens:
                self._read()

    def _read(self) -> None:
        """Let the trunk read every text, and note of each token what nobody has noted yet."""
        written, tokens, last = torch.zeros(self.count, dtype=torch.bool), [], []
        read = self.trunk.prefill(self.texts, self.groups)
        for rows, states in tqdm(read, desc=self.progress, disable=self.progress is None, leave=False):
            to = torch.cat([self.places[row, : len(self.texts[row])] for row in rows])
            new = ~written[to]
            written[to] = True
            to = to[new].to(states.mask.device)
            row, column = states.mask.nonzero()[new.to(states.mask.device)].T
            parts = [*states.keys, *states.values]
            if not tokens:
                tokens = [part.new_empty(self.count, part.shape[1], part.shape[3]) for part in parts]
                if states.pooled is not None:
                    last = [states.pooled.new_empty(len(self.texts), states.pooled.shape[1])]
            for kept, part in zip(tokens, parts, strict=True):
                kept[to] = part[row, :, column]
            for kept in last:
                kept[rows] = states.pooled
        self.last += last
        self.tokens += tokens

    def select(self, rows: Sequence[int], room: int = 0) -> PrefilledKV:
        """The states of `rows`, in that order; those that are kept with `room` for so many later tokens."""
        if not self.kept:
            read = self.trunk.prefill([self.texts[row] for row in rows], [self.groups[row] for row in rows])
            return _joined(list(read))
        self.keep()
        lengths = self.lengths[rows]
        places = self.places[rows, : int(lengths.max())]  # behind a text's end some other token, which the mask hides
        mask = (torch.arange(places.shape[1]) < lengths.unsqueeze(1)).to(self.trunk.device)
        roomy = pad(places, (0, room))
        at, shape = roomy.flatten().to(self.trunk.device), roomy.shape
        parts = [kept.index_select(0, at).unflatten(0, shape).transpose(1, 2) for kept in self.tokens]
        last = self.last[0][rows] if self.last else None
        return PrefilledKV(parts[: len(parts) // 2], parts[len(parts) // 2 :], mask, last)


def prefill_key(settings: RewardSettings) -> tuple:
    """Which settings decide how pairs are read: states made with others must not be trained on."""
    return settings.question, settings.draft_tokens, settings.bf16, settings.max_length


def _joined(parts: Sequence[tuple[list[int], PrefilledKV]]) -> PrefilledKV:
    """Micro-batches of `Trunk.read` as one batch, in the order of the rows."""
    width = max(states.mask.shape[1] for _, states in parts)
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()

    def grown(tensor: Tensor, dim: int) -> Tensor:
        missing = [*tensor.shape]
        missing[dim] = width - missing[dim]
        return torch.cat([tensor, tensor.new_zeros(missing)], dim=dim)

    layers = range(len(parts[0][1].keys))
    joined = PrefilledKV(
        [torch.cat([grown(s.keys[layer], 2) for _, s in parts]) for layer in layers],
        [torch.cat([grown(s.values[layer], 2) for _, s in parts]) for layer in layers],
        torch.cat([grown(s.mask, 1) for _, s in parts]),
        torch.cat([s.pooled for _, s in parts]) if parts[0][1].pooled is not None else None,
    )
    return joined.select(order.to(joined.mask.device))
