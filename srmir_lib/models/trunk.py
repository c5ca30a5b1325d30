"""One frozen trunk, read once: token ids become key-value states that any number of probes can read.

Rows that share a prompt share its states: the trunk reads the prompt once and each completion once. The last layer
stops as soon as its keys and values are there, for nothing behind them is ever read. Micro-batches are sorted by
length and bounded in tokens, so that peak memory does not grow with the number of rows.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import ending_before, pool
from srmir_lib.models.kv_cache import CaptureCache, PrefilledKV, StopForward
from srmir_lib.models.loading import is_causal

LEAST_SHARED = 8
"""A common beginning of fewer tokens is not worth a forward pass of its own."""


CPU_TOKENS = 2048
"""Tokens of a forward pass on a CPU: larger ones leave its cache, which makes them slower, and take memory."""


PASS_TOKENS = {"cpu": 128, "cuda": 4096}
"""What starting a forward pass costs, in tokens that might be read meanwhile: little where reading itself is slow."""


SHARED_PART = 4
"""Beginnings in memory at a time take at most one in so many of a batch's tokens, or they would set the peak."""


ROOM_PART = 4
"""Room for later tokens is at most one place to so many of a text's own: it lies in all layers at once."""


def linear_layers(decoder) -> dict[str, nn.Linear]:
    """The linear layers of a decoder by name: what PEFT calls `all-linear`."""
    return {name: layer for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)}


def behind_attention(decoder) -> list[nn.Module]:
    """What the last layer adds to each token by itself, once the tokens have seen each other; nothing if its parts are
    not named as in Llama, Mistral and Qwen."""
    last = decoder.layers[-1] if hasattr(decoder, "layers") else None
    parts = [getattr(getattr(last, "self_attn", None), "o_proj", None), getattr(last, "mlp", None)]
    return parts if all(parts) and hasattr(parts[1], "down_proj") else []


def trunk_problem(model) -> str:
    """Why what this model has read cannot be kept for later tokens, and what to do; "" if it can."""
    config, name = model.config.get_text_config(), type(model).__name__
    if hasattr(model, "peft_config"):
        return f"{name}: carries an adapter; give the base model, the trunk must read as it does"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    fix = "use design separate or pooled, or a decoder with full attention (Qwen2/3, Llama, Mistral)"
    if not is_causal(model):
        return f"{name}: an encoder, or a model without a language-model head, keeps no cache; {fix}"
    if kinds - {"full_attention"} or not hasattr(config, "num_key_value_heads"):
        return f"{name}: has {', '.join(sorted(kinds))}; probes must see every earlier token; {fix}"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return f"{name}: a sliding window of {window} tokens hides the prompt from the probes; {fix}"
    return ""


class Trunk:
    """A frozen decoder that turns token ids into `PrefilledKV`."""

    def __init__(self, model, batch_tokens: int = 8192, layer: int | None = None):
        """`model`: a decoder, with or without its language-model head. `batch_tokens`: tokens in one forward pass at
        most (one row may have more; a CPU takes no more than `CPU_TOKENS`). `layer`: also pool the hidden states of
        this number, 0 to `layers` or, from the end, -1; the layers behind it do not run."""
        if problem := trunk_problem(model):
            raise InputError(problem)
        self.decoder, self.config = model.base_model, model.config.get_text_config()
        self.batch_tokens = min(batch_tokens, CPU_TOKENS) if self.device.type == "cpu" else batch_tokens
        self.pass_tokens = PASS_TOKENS.get(self.device.type, PASS_TOKENS["cuda"])
        self.layers = self.config.num_hidden_layers
        self.linear = linear_layers(self.decoder)
        self.behind_attention = behind_attention(self.decoder)
        self.layer = None if layer is None else layer % (self.layers + 1)

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    def prefill(
        self,
        ids: Sequence[Sequence[int]],
        groups: Sequence[Hashable] | None = None,
        starts: Sequence[int] | None = None,
        room: int = 0,
    ) -> Iterator[tuple[list, PrefilledKV]]:
        """Yield (rows, `PrefilledKV`) until every row of `ids` was read once; in order of length, not of rows.

        `groups` names what rows may share (their prompt, say): what the rows of a group have in common at their
        beginning is read once. The result does not depend on it, nor on what else is in the batch. `starts`: pool the
        mean from these tokens on, instead of the last token. `room`: places behind a text's keys
        and values for so many later tokens, left where they take little (`ROOM_PART`).
        """
        limit = getattr(self.config, "max_position_embeddings", None)
        for row, tokens in enumerate(ids):
            if not tokens or (limit is not None and len(tokens) > limit):
                raise InputError(f"{len(tokens)} tokens of row {row}: too many or none; the model reads 1 to {limit}")
        yield from self._prefill(ids, groups, starts, room)

    def _prefill(self, ids, groups, starts, room: int) -> Iterator[tuple[list, PrefilledKV]]:
        shared = [0] * len(ids)
        if groups is not None and self.layer != 0:
            shared = shared_lengths(ids, groups, starts)

        def rest(rows: Sequence[int]) -> tuple[list[Sequence[int]], list[int] | None]:
            """What follows the shared beginnings, and where in it the mean begins."""
            means = None if starts is None else [starts[row] - shared[row] for row in rows]
            return [ids[row][shared[row] :] for row in rows], means

        alone = [row for row in range(len(ids)) if not shared[row]]
        for rows in batches(alone, [len(tokens) for tokens in ids], self.batch_tokens, self.pass_tokens):
            yield rows, self._forward(*rest(rows), room=room)
        members: dict[Hashable, list[int]] = {}
        for row in range(len(ids)):
            if shared[row]:
                members.setdefault(groups[row], []).append(row)
        keys = list(members)
        begun = [shared[members[key][0]] for key in keys]
        # what is shared is copied, not read, but it takes memory: it counts half where it is the larger part
        sizes = [max(len(row) - start, len(row) // 2) for row, start in zip(ids, shared, strict=True)]
        for chunk in batches(range(len(keys)), begun, self.batch_tokens // SHARED_PART, self.pass_tokens):
            before = self._forward([ids[members[keys[at]][0]][: begun[at]] for at in chunk])
            of = {row: place for place, at in enumerate(chunk) for row in members[keys[at]]}
            for rows in batches(of, sizes, self.batch_tokens, self.pass_tokens):
                at = torch.tensor([of[row] for row in rows], device=self.device)
                yield rows, self._forward(*rest(rows), before, at, room)
            del before  # else it is in memory while the next is made

    @torch.no_grad()  # not on `read`: around a generator it would hold what was yielded while the next is made
    def _forward(
        self,
        ids: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        before: PrefilledKV | None = None,
        at: Tensor | None = None,
        room: int = 0,
    ) -> PrefilledKV:
        """Read texts, or what follows the texts `at` (B,) of `before`; padded on the right, with explicit positions."""
        lengths = torch.tensor([len(tokens) for tokens in ids], device=self.device)
        width = int(lengths.max())
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=self.device)
        place, end = torch.arange(width, device=self.device).unsqueeze(0), lengths.unsqueeze(1)
        new, positions = place < end, torch.minimum(place, end - 1)
        if before is not None:
            positions = positions + before.lengths[at].unsqueeze(1)
        mask = torch.cat([before.mask[at], new], dim=1) if before is not None else new
        inputs = {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": positions}
        count = self.layers if self.layer is None else self.layer
        cache = CaptureCache(count, before, at, stop=self.layer is None, room=room_behind(mask.shape[1], room))
        with ending_before(self.decoder, self.layer, self.layers):
            try:
                hidden = self.decoder(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
            except StopForward as stop:
                hidden = stop.hidden
        pooled = None
        if hidden is not None and starts is None:
            pooled = hidden[torch.arange(len(ids), device=self.device), lengths - 1]
        elif hidden is not None:
            pooled = pool(
                hidden.float(), new & (place >= torch.tensor(starts, device=self.device).unsqueeze(1)), "mean"
            )
        keys, values = ([] if block is None else list(block) for block in (cache.keys, cache.values))
        return PrefilledKV(keys, values, mask, pooled)


def room_behind(width: int, room: int) -> int:
    """`room` places behind texts of `width`, where that takes little (`ROOM_PART`), else none."""
    return room if ROOM_PART * room <= width else 0


def shared_lengths(
    ids: Sequence[Sequence[int]], groups: Sequence[Hashable], most: Sequence[int] | None = None
) -> list[int]:
    """How many tokens each row has in common with all others of its group, at the beginning; 0 if alone or too few.

    At least one token of every row stays its own, and with `most` all behind so many.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    lengths = [0] * len(ids)
    for rows in members.values():
        common = min(len(ids[row]) - 1 if most is None else min(len(ids[row]) - 1, most[row]) for row in rows)
        for left, right in pairwise(rows):
            both = enumerate(zip(ids[left][:common], ids[right][:common], strict=True))
            common = next((at for at, (one, other) in both if one != other), common)
        if len(rows) > 1 and common >= LEAST_SHARED:
            for row in rows:
                lengths[row] = common
    return lengths


def batches(rows: Sequence[int], lengths: Sequence[int], batch_tokens: int, pass_tokens: int) -> Iterator[list[int]]:
    """Rows in order of length, the longest first, cut where a padded batch would exceed `batch_tokens`.

    Also cut where padding the shorter rest would take more than a pass of its own, which costs `pass_tokens` more.
    """
    order = sorted(rows, key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        end = min(len(order), start + max(1, batch_tokens // longest))
        saved = ((at, (longest - lengths[order[at]]) * (end - at)) for at in range(start + 1, end))
        end = next((at for at, tokens in saved if tokens > pass_tokens), end)
        yield order[start:end]
        start = end
