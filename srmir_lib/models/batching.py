"""Micro-batches: rows of similar length together, so that little is padding and memory stays bounded."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

BATCH_TOKENS = 8192
"""Tokens of one forward pass, padding counted."""


CPU_TOKENS = 2048
"""The same on a CPU: larger passes leave its cache, which makes them slower, and take memory."""


def token_budget(device: torch.device, tokens: int = BATCH_TOKENS) -> int:
    """Tokens of a forward pass on this device, `tokens` at most."""
    return min(tokens, CPU_TOKENS) if device.type == "cpu" else tokens


def counted(batches: Iterable, total: int, what: str, size: Callable = len, shown: bool = True) -> Iterator:
    """`batches` as they come, behind a bar over all `total` rows, that shows itself to who waits five seconds; `size`
    tells the rows of a batch."""
    with tqdm(total=total, desc=what, disable=not shown, leave=False, delay=5) as bar:
        for batch in batches:
            count = size(batch)
            yield batch
            del batch  # else it is in memory while the next is made
            bar.update(count)


def by_length(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """`rows` in order of their `lengths`, the longest first, in batches of at most so many tokens with the padding; a
    row that is longer comes alone."""
    order, start = sorted(rows, key=lambda row: -lengths[row]), 0
    while start < len(order):
        end = start + max(1, tokens // max(1, lengths[order[start]]))
        yield order[start:end]
        start = end


def padded(
    ids: Sequence[Sequence[int]], device: torch.device, pad_token_id: int = 0, left: bool = False
) -> dict[str, Tensor]:
    """What a model reads of tokenized texts, padded on the right or on the `left`: `input_ids`, `attention_mask` and
    explicit `position_ids`, (B, T) each."""
    width = max(map(len, ids))
    gaps = [[pad_token_id] * (width - len(row)) for row in ids]
    rows = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(ids, gaps, strict=True)]
    lengths = torch.tensor([len(row) for row in ids], device=device).unsqueeze(1)
    place = torch.arange(width, device=device) - (width - lengths if left else 0)
    return {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": ((place >= 0) & (place < lengths)).long(),
        "position_ids": torch.minimum(place.clamp(min=0), lengths - 1),
    }
