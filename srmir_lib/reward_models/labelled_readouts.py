"""Read-outs learned from labelled answers: what a frozen model represents of harm, whatever it says of it.

The read-outs of RBRM (`readouts`) learn from pairs; here a pair is any safe answer and any unsafe one, whatever they
answer, for both are read off states of their own. So the level of a prompt is learned as well, which pairs of answers
to one prompt leave to chance. Layer and learning rate are chosen on validation answers.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from srmir_lib.errors import InputError
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.statistics import auroc

RATES, EPOCHS = (1e-3, 3e-3, 1e-2), 20


def spaced_layers(model) -> list[int]:
    """Six hidden states of a causal model, or all if it has fewer, evenly spaced up to the last."""
    last = model.config.get_text_config().num_hidden_layers
    return sorted({round(last * (number + 1) / 6) for number in range(6)} - {0})


def cross_pairs(unsafe: Sequence, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of safe and of unsafe answers, side by side: every answer of the larger kind once, in a random order, those
    of the other again and again. `unsafe`: (N,), 0 or 1; one kind alone is an `InputError`."""
    labels, generator = torch.as_tensor(unsafe).bool(), torch.Generator().manual_seed(seed)
    kinds = [torch.nonzero(labels == kind).flatten() for kind in (False, True)]
    if not all(map(len, kinds)):
        raise InputError("labelled answers: all are safe, or all unsafe; nothing can be learned from one kind")
    most = max(map(len, kinds))
    safe, bad = (
        torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-most // len(rows)))])[:most]
        for rows in kinds
    )
    return safe, bad


def learn_from_labels(
    states: Tensor,
    unsafe: Sequence,
    held_states: Tensor,
    held_unsafe: Sequence,
    layers: Sequence[int],
    pooling: str,
    model: str,
    seed: int = 0,
) -> tuple[ReadOuts, dict]:
    """The read-outs that tell safe from unsafe held-out answers best (AUROC), and the choice: layers, rate, AUROC.

    `states` (N, L, H) of training answers at L `layers`, `held_states` of validation answers; `unsafe`, `held_unsafe`:
    their labels. Candidates: every layer alone and all together, at each of `RATES`, for `EPOCHS` passes. `pooling`,
    `model`: as of `ReadOuts`.
    """
    safe, bad = cross_pairs(unsafe, seed)
    best, choice = None, {"auroc": -1.0}
    for places, rate in product([[place] for place in range(len(layers))] + [list(range(len(layers)))], RATES):
        own = [layers[place] for place in places]
        readouts = ReadOuts.blank(own, pooling, model, states[:, places])
        readouts.learn(states[safe][:, places], states[bad][:, places], EPOCHS, rate, seed=seed)
        found = auroc(-readouts.score(held_states[:, places]).numpy(), held_unsafe)
        if found > choice["auroc"]:
            best, choice = readouts, {"layers": own, "learning_rate": rate, "auroc": found}
    return best, choice
