"""One frozen trunk: the base model in memory once, for whatever routes, drafts or scores with it.

`prefill` makes key-value states of token ids, which any number of probes can read. Rows that share a prompt share its
states: the trunk reads the prompt once and each completion once. The last layer stops as soon as its keys and values
are there, for nothing behind them is ever read. Micro-batches are bounded in tokens, so that peak memory does not grow
with the number of rows.
"""

from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from srmir_lib.artifacts import remembered
from srmir_lib.conversations import too_long
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.batching import BATCH_TOKENS, by_length, padded, token_budget
from srmir_lib.models.embeddings import hidden_states, longest_text, pool
from srmir_lib.models.generation import generate
from srmir_lib.models.kinds import instead_of_shared, language_problem, shared_problem, window_of
from srmir_lib.models.kv_cache import CaptureCache, PrefilledKV
from srmir_lib.models.loading import (
    computed_on,
    config_of,
    fingerprint,
    load_policy,
    load_tokenizer,
    quiet,
    share_weights,
    with_adapter,
)

LEAST_SHARED = 8
"""A common beginning of fewer tokens is not worth a forward pass of its own."""


SHARED_PART = 4
"""Beginnings in memory at a time take at most one in so many of a batch's tokens, or they would set the peak."""


def trunk_problem(model) -> str:
    """Why what this model has read cannot be kept for later tokens, and what to do; "" if it can."""
    if hasattr(model, "peft_config"):
        return f"{type(model).__name__}: carries an adapter; give the base model, the trunk must read as it does"
    return shared_problem(model)


class Trunk:
    """A frozen causal model and its tokenizer: `Trunk.load(base_model)` once, then hand it to the router, to the
    introspector and to every set of reward models, which all share its weights."""

    def __init__(
        self,
        model,
        tokenizer,
        base_model: str | Path = "",
        batch_tokens: int = BATCH_TOKENS,
        keep_in: Path | None = None,
    ):
        """`base_model`: the id or folder that the model came from. `batch_tokens`: tokens in one forward pass at most
        (one row may have more; a CPU takes no more than it is fast with). `keep_in`: a folder for what `generate`
        says, so that a killed run goes on."""
        self.model, self.tokenizer, self.base_model = model, tokenizer, str(base_model)
        self.batch_tokens, self.keep_in = token_budget(self.device, batch_tokens), keep_in

    @classmethod
    def load(
        cls,
        base_model: str | Path,
        device: str = "auto",
        dtype: str = "",
        batch_tokens: int = BATCH_TOKENS,
        keep_in: Path | None = None,
    ) -> "Trunk":
        """A causal model by id or folder, frozen. `dtype`: bfloat16 or float32; empty: what suits it (`precision`)."""
        if problem := language_problem(config_of(base_model)):
            raise InputError(f"{base_model}: {problem}")
        tokenizer = load_tokenizer(base_model)
        with quiet():
            model = load_policy(base_model, device, dtype).requires_grad_(False)
        return cls(model, tokenizer, base_model, batch_tokens, keep_in)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        """Precision of the weights, such as float32."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def decoder(self):
        """The model without its language-model head."""
        return self.model.base_model

    @property
    def config(self):
        return self.model.config.get_text_config()

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that the model reads, if there is a limit."""
        return longest_text(self.model)

    def reach_problem(self, tokens: int) -> str:
        """What is wrong with a text of so many tokens whose last one is to see all before it; "" if nothing."""
        window = window_of(self.config)
        if (problem := too_long(tokens, self.longest)) or window is None or tokens <= window:
            return problem
        unseen = (
            f"{tokens} tokens, more than the sliding window of {window}, so that a probe behind it misses its start"
        )
        return f"{unseen}; shorten it, or {instead_of_shared(self.model)}"

    def check_reach(self, ids: Sequence[Sequence[int]], more: int = 0) -> None:
        """Refuse a text whose beginning a token would not see that comes `more` tokens behind its end, and one that is
        longer than the model reads."""
        for row, tokens in enumerate(ids):
            if problem := self.reach_problem(len(tokens) + more):
                raise RowError(f"{{row}}: {problem}", row)

    @property
    def linear(self) -> dict[str, nn.Linear]:
        """The linear layers of the decoder by name: what PEFT calls `all-linear`."""
        return {name: layer for name, layer in self.decoder.named_modules() if isinstance(layer, nn.Linear)}

    @cached_property
    def sha256(self) -> str:
        """What tells this base model from every other (`fingerprint`)."""
        return fingerprint(self.base_model)

    def generate(self, prompts: Sequence[str | list[dict]], max_new_tokens: int, **options) -> list[str]:
        """What the base model answers, one response per prompt; `options` as of `generation.generate`. What it has
        answered to the very same before is read from the folder `keep_in`, if there is one."""
        answer = partial(generate, self.model, self.tokenizer, prompts, max_new_tokens, **options)
        if self.keep_in is None:
            return answer()
        told = {name: value for name, value in options.items() if name != "progress"}
        return remembered(
            self.keep_in, [self.sha256, computed_on(self.model), list(prompts), max_new_tokens, told], answer
        )

    def policy(self, adapter: str | Path | None = None):
        """The model with the LoRA adapter of a folder on top, or as it is, in evaluation mode: a module tree of its own
        over the same weights."""
        own = share_weights(self.model)
        return own.eval() if adapter is None else with_adapter(own, adapter).eval()

    def with_own_modules(self) -> "Trunk":
        """The same weights under a second module tree: what probes or a policy's adapter add to a tree's
        layers, every pass through them gets."""
        other = copy(self)
        other.model = share_weights(self.model)
        return other

    def check(self) -> None:
        """Refuse a model whose states cannot be kept for probes, with the reason."""
        if problem := trunk_problem(self.model):
            raise InputError(problem)

    def prefill(
        self,
        ids: Sequence[Sequence[int]],
        groups: Sequence[Hashable] | None = None,
        starts: Sequence[int] | None = None,
        layer: int | None = None,
    ) -> Iterator[tuple[list[int], PrefilledKV]]:
        """Yield (rows, `PrefilledKV`) until every row of `ids` was read once; in order of length, not of rows.

        `groups` names what rows may share (their prompt, say): what the rows of a group have in common at their
        beginning is read once. The result does not depend on it, nor on what else is in the batch. `layer`: also pool
        the hidden states of this number, 0 to `layers` or, from the end, -1, at the last token or, with `starts`, as
        the mean from these tokens on; the layers behind it do not run.
        """
        self.check()
        lengths = [len(tokens) for tokens in ids]
        self.check_reach(ids)
        if 0 in lengths:
            raise RowError("{row}: no tokens, so there is nothing to read", lengths.index(0))
        layers = self.config.num_hidden_layers
        layer = None if layer is None else layer % (layers + 1)
        shared = [0] * len(ids) if groups is None or layer == 0 else shared_lengths(ids, groups, starts)

        def forward(rows: Sequence[int], before: PrefilledKV | None = None, at: Tensor | None = None) -> PrefilledKV:
            """Read what follows the shared beginnings of these rows."""
            means = None if starts is None else [starts[row] - shared[row] for row in rows]
            return self._forward([ids[row][shared[row] :] for row in rows], layer, means, before, at)

        for rows in by_length([row for row in range(len(ids)) if not shared[row]], lengths, self.batch_tokens):
            yield rows, forward(rows)
        members: dict[Hashable, list[int]] = {}
        for row in range(len(ids)):
            if shared[row]:
                members.setdefault(groups[row], []).append(row)
        texts = list(members.values())
        begun = [shared[rows[0]] for rows in texts]
        # what is shared is copied, not read, but it takes memory: it counts half where it is the larger part
        sizes = [max(length - start, length // 2) for length, start in zip(lengths, shared, strict=True)]
        for chunk in by_length(range(len(texts)), begun, self.batch_tokens // SHARED_PART):
            before = self._forward([ids[texts[at][0]][: begun[at]] for at in chunk], layer)
            of = {row: place for place, at in enumerate(chunk) for row in texts[at]}
            for rows in by_length(of, sizes, self.batch_tokens):
                yield rows, forward(rows, before, torch.tensor([of[row] for row in rows], device=self.device))
            del before  # else it is in memory while the next is made

    @torch.no_grad()  # not on `prefill`: around a generator it would hold what was yielded while the next is made
    def _forward(
        self,
        ids: Sequence[Sequence[int]],
        layer: int | None,
        starts: Sequence[int] | None = None,
        before: PrefilledKV | None = None,
        at: Tensor | None = None,
    ) -> PrefilledKV:
        """Read texts, or what follows the texts `at` (B,) of `before`; padded on the right, with explicit positions."""
        inputs, layers = padded(ids, self.device), self.config.num_hidden_layers
        new = inputs["attention_mask"]
        mask = new.bool()
        if before is not None:
            inputs["position_ids"] = inputs["position_ids"] + before.lengths[at].unsqueeze(1)
            mask = torch.cat([before.mask[at], mask], dim=1)
        inputs["attention_mask"] = mask.long()
        cache = CaptureCache(layers if layer is None else layer, before, at, stop=layer is None)
        inputs |= {"past_key_values": cache, "use_cache": True}
        hidden = hidden_states(self.decoder, inputs, layer, layers)
        pooled = None if hidden is None else pool(hidden, new, starts)
        keys, values = ([] if block is None else list(block) for block in (cache.keys, cache.values))
        return PrefilledKV(keys, values, mask, pooled)


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
