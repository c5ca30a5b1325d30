"""Preference pairs as a frozen trunk has read them: read once, kept while they fit, given out in any order."""

from collections.abc import Sequence
from copy import copy
from threading import Lock

import torch
from torch import Tensor
from torch.nn.functional import pad

from srmir_lib.models.batching import counted
from srmir_lib.models.kv_cache import PrefilledKV, numbers_a_token
from srmir_lib.models.trunk import Trunk, shared_lengths
from srmir_lib.reward_models.pairs import TokenizedPairs
from srmir_lib.reward_models.probes import check_probes
from srmir_lib.settings.reward_training import RewardSettings


class PrefilledPairs(TokenizedPairs):
    """Preference pairs as a trunk has read them: each distinct text once, and a prompt's part once for all its texts.

    `select(texts)` pads what is asked for into `PrefilledKV`. Made once, it serves any number of `fit_shared` on the
    same pairs. States that do not fit into `keep_gb` are not kept, but read again when asked for.
    """

    def __init__(self, trunk: Trunk, pairs, settings: RewardSettings):
        check_probes(trunk, settings.probe)
        super().__init__(trunk, pairs, settings)
        self.check_reach()
        self.texts: list[list[int]] = []
        self.groups: list[str] = []
        places: dict[tuple[int, ...], int] = {}
        self.at = torch.zeros(len(self.data), 2, dtype=torch.long)  # where a pair's chosen and rejected text lie
        prompts = [str(prompt) for prompt in self.pairs["prompt"]]
        for side, name in enumerate(("chosen_ids", "rejected_ids")):
            for pair, tokens in enumerate(self.data[name]):
                at = places.setdefault(tuple(tokens), len(self.texts))
                if at == len(self.texts):
                    self.texts.append(tokens)
                    self.groups.append(prompts[pair])
                self.at[pair, side] = at
        self.lengths = torch.tensor([len(text) for text in self.texts])
        self.places, self.count = self._places()
        self.fits = self.bytes() <= settings.keep_gb * 1e9
        self.cached: list[Tensor] = []  # keys, then values, by layer: (tokens, heads, head size) each
        self.lock = Lock()  # twins share what is kept, and one of them reads it

    def _places(self) -> tuple[Tensor, int]:
        """Where each text's tokens lie among all that are kept, (texts, T), 0 behind its end; and how many those are.

        A beginning that several texts share is kept once.
        """
        places = torch.zeros(len(self.texts), int(self.lengths.max()), dtype=torch.long)
        begun: dict[str, int] = {}
        count = 0
        shared = shared_lengths(self.texts, self.groups)
        for row, (text, group, start) in enumerate(zip(self.texts, self.groups, shared, strict=True)):
            if start and group not in begun:
                begun[group] = count
                count += start
            if start:
                places[row, :start] = torch.arange(begun[group], begun[group] + start)
            places[row, start : len(text)] = torch.arange(count, count + len(text) - start)
            count += len(text) - start
        return places, count

    def check_reach(self, more: int = 0) -> None:
        """Refuse a pair of which a text is too long for `more` tokens behind it (`Trunk.check_reach`)."""
        for name in ("chosen_ids", "rejected_ids"):
            self.trunk.check_reach(self.data[name], more)

    def bytes(self) -> int:
        """What keeping all states takes."""
        return numbers_a_token(self.trunk.config) * self.trunk.model.dtype.itemsize * self.count

    def with_own_modules(self) -> "PrefilledPairs":
        """The same states over a second module tree of the same weights, for a fit beside this one."""
        other = copy(self)
        other.trunk = self.trunk.with_own_modules()
        return other

    def keep(self, progress: str | None = None) -> None:
        """Read and keep what fits; done at most once, and by the first `select` at the latest."""
        with self.lock:
            if self.fits and not self.cached:
                self._read(progress)

    def _read(self, progress: str | None) -> None:
        """Let the trunk read every text, and note of each token what nobody has noted yet."""
        written, cached = torch.zeros(self.count, dtype=torch.bool), []
        read = self.trunk.prefill(self.texts, self.groups)
        shown = counted(read, len(self.texts), progress, lambda part: len(part[0]), progress is not None)
        for rows, states in shown:
            to = torch.cat([self.places[row, : len(self.texts[row])] for row in rows])
            new = ~written[to]
            written[to] = True
            to = to[new].to(states.mask.device)
            row, column = states.mask.nonzero()[new.to(states.mask.device)].T
            parts = [*states.keys, *states.values]
            if not cached:
                cached = [part.new_empty(self.count, part.shape[1], part.shape[3]) for part in parts]
            for kept, part in zip(cached, parts, strict=True):
                kept[to] = part[row, :, column]
        self.cached += cached

    def select(self, texts: Sequence[int]) -> PrefilledKV:
        """The states of `texts`, in that order."""
        if not self.fits:
            ids, groups = [self.texts[at] for at in texts], [self.groups[at] for at in texts]
            return _joined(list(self.trunk.prefill(ids, groups)))
        self.keep()
        lengths = self.lengths[texts]
        places = self.places[texts, : int(lengths.max())]  # behind a text's end some other token, which the mask hides
        mask = (torch.arange(places.shape[1]) < lengths.unsqueeze(1)).to(self.trunk.device)
        at = places.flatten().to(self.trunk.device)
        parts = [kept.index_select(0, at).unflatten(0, places.shape).transpose(1, 2) for kept in self.cached]
        return PrefilledKV(parts[: len(parts) // 2], parts[len(parts) // 2 :], mask)


def _joined(parts: Sequence[tuple[list[int], PrefilledKV]]) -> PrefilledKV:
    """Micro-batches of `Trunk.prefill` as one batch, in the order of the rows."""
    width = max(states.mask.shape[1] for _, states in parts)
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()

    def whole(states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The keys or values of all layers."""
        layers = zip(*states, strict=True)
        return [torch.cat([pad(part, (0, 0, 0, width - part.shape[2])) for part in of])[order] for of in layers]

    keys, values = whole([states.keys for _, states in parts]), whole([states.values for _, states in parts])
    mask = torch.cat([pad(states.mask, (0, width - states.mask.shape[1])) for _, states in parts])
    return PrefilledKV(keys, values, mask[order])
