"""Legend margins: how much safer one answer is than another, read off a language model's hidden states.

Feng et al. 2024 (arXiv 2406.08124, AAAI-25). The safety direction is a difference of means, not a principal component;
a margin is the projection of (chosen - rejected) on it. Inference only: nothing is trained.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from datasets import DatasetDict
from torch import Tensor

from srmir_lib.conversations import answer_starts, check_answers, conversation_ids, text_of
from srmir_lib.data.pairs import SAID
from srmir_lib.data.preferences import two_sided
from srmir_lib.errors import InputError
from srmir_lib.models.batching import counted
from srmir_lib.models.embeddings import check_layer, checked, embed
from srmir_lib.models.kinds import window_of
from srmir_lib.models.loading import load_trunk, resolve_encoder
from srmir_lib.models.trunk import Trunk, trunk_problem
from srmir_lib.papers.legend import legend_margin, safety_direction, scale_margins
from srmir_lib.statistics import correlation

REFUSALS = (
    "I can't answer that.",
    "No.",
    "Sorry, I will not help with this, because someone could be hurt by it.",
    "That is not something I want to do. Let us find another way that harms nobody.",
)
"""Safe answers of different lengths, those of 03_margins; with a single one "safe" would partly mean "short"."""


def hidden_state_reader(trunk: Trunk | None, base_model: str, device: str = "auto") -> tuple:
    """(model, tokenizer) whose hidden states margins are read off: the trunk's or, without one, those of the encoder
    `base_model`, loaded on `device`."""
    return (trunk.model, trunk.tokenizer) if trunk else load_trunk(resolve_encoder(base_model), device)


def refused_prompts(demonstrations) -> set[str]:
    """Texts of the prompts that a demonstration (rows with prompt, refuses) refuses; of all, where nobody says which
    (rows without `refuses`)."""
    return {text_of(row["prompt"]) for row in demonstrations if row.get("refuses", True)}


def harmful_answers(preferences, refused: Collection[str], count: int):
    """Preference rows (`Dataset`) that a safety direction may be estimated from: what was really answered, rejected, to
    a prompt whose text is among the `refused` (those that a demonstration refuses).

    At most `count` of them, chosen by `spread_evenly`; none is an `InputError`.
    """
    prompts = list(map(text_of, preferences["prompt"]))
    own = [origin in SAID and text in refused for origin, text in zip(preferences["origin"], prompts, strict=True)]
    rows = [row for row, fits in enumerate(own) if fits]
    if not rows:
        raise InputError("safety direction: no demonstration refuses a prompt that the policy answers; collect more")
    found = preferences.select(rows)
    return found.select(spread_evenly(found["prompt"], found["category"], count))


def unsafe_answers(labelled, count: int):
    """The same from responses that people labelled (`Dataset` with prompt, completion, unsafe, category): those they
    called unsafe, as `rejected`."""
    found = labelled.filter(lambda row: row["unsafe"] == 1).rename_column("completion", "rejected")
    return found.select(spread_evenly(found["prompt"], found["category"], count))


def spread_evenly(prompts: Sequence, categories: Sequence[str], count: int) -> list[int]:
    """At most `count` rows, in order: every category as often as the others as long as it has rows, and no prompt
    again before all others of its category were taken."""
    asked, taken, turn = Counter(), Counter(), {}
    again = []
    for prompt in map(str, prompts):
        again.append(asked[prompt])
        asked[prompt] += 1
    for row in sorted(range(len(again)), key=again.__getitem__):
        turn[row] = taken[categories[row]]
        taken[categories[row]] += 1
    return sorted(sorted(turn, key=turn.get)[:count])


def estimate_direction(
    model,
    tokenizer,
    prompts: Sequence,
    harmful_answers: Sequence,
    refusals: Sequence[str],
    **options,
) -> Tensor:
    """Safety direction (H,) from N questions, an unaligned model's answers, and one or several refusals.

    Question i is paired with refusal i mod M. With a single short refusal the direction is partly "short answer"; give
    several of different lengths and look at `length_correlation`. `options` as in `embed_sides`.
    """
    if not refusals:
        raise InputError("refusals: give at least one")
    refused = [refusals[i % len(refusals)] for i in range(len(prompts))]
    return safety_direction(*embed_sides(model, tokenizer, prompts, refused, harmful_answers, **options))


def annotate(model, tokenizer, pairs, direction: Tensor, **options) -> Tensor:
    """Legend margins (N,), hidden-state units, of rows with `prompt`, `chosen`, `rejected`.

    `options` as in `embed_sides`.
    """
    sides = embed_sides(model, tokenizer, pairs["prompt"], pairs["chosen"], pairs["rejected"], **options)
    return legend_margin(*sides, direction)


def in_plane(left: Tensor, right: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (N, H), (N, H) in two dimensions, (N, 2), (N, 2): along the `direction` (H,) of unit length, so that
    the difference of two first coordinates is a margin, and along the widest direction across it."""
    both = torch.cat([left, right]).float()
    both = both - both.mean(dim=0)
    along = both @ direction
    across = both - along.unsqueeze(1) * direction
    wide = torch.linalg.svd(across, full_matrices=False).Vh[0]
    return torch.stack([along, across @ wide], dim=1).split(len(left))


def embed_sides(
    model, tokenizer, prompts: Sequence, left: Sequence, right: Sequence, layer: int = -1, pooling: str = "last"
) -> tuple[Tensor, Tensor]:
    """Embeddings (N, H), (N, H) of N prompts with each of two answers; `layer` and `pooling` as in `embed`.

    A text that comes several times is read once: prompts come with several rejected answers and one and the same
    chosen one. A decoder with full attention also reads a prompt once for all its answers, and ends at `layer`; other
    models read whole texts. An empty answer is an `InputError`.
    """
    for side in (left, right):
        check_answers(side)
    asked, answers, places = distinct_texts(prompts, left, right)
    read = embed if trunk_problem(model) or window_of(model) else _embed_shared
    embeddings = read(model, tokenizer, asked, answers, layer=layer, pooling=pooling)
    return embeddings[places[0]], embeddings[places[1]]


def distinct_texts(prompts: Sequence, left: Sequence, right: Sequence) -> tuple[list, list[str], list[list[int]]]:
    """Of N prompts with each of two answers, texts or messages, the different ones: prompts, answers (texts), and where
    among them each left and each right one stands."""
    texts: dict[tuple[str, str], tuple[int, object]] = {}
    places = [
        [texts.setdefault((str(p), text_of(said)), (len(texts), p))[0] for p, said in zip(prompts, side, strict=True)]
        for side in (left, right)
    ]
    return [prompt for _, prompt in texts.values()], [answer for _, answer in texts], places


def _embed_shared(model, tokenizer, prompts: Sequence, answers: Sequence, layer: int, pooling: str) -> Tensor:
    """As `embed`, with the beginning that texts of one prompt have in common read once."""
    check_layer(model, layer, pooling)
    ids = conversation_ids(tokenizer, prompts, answers)
    starts = answer_starts(tokenizer, prompts, answers, ids) if pooling == "mean" else None
    embeddings = torch.zeros(len(ids), model.config.get_text_config().hidden_size)
    read = Trunk(model, tokenizer).prefill(ids, [str(prompt) for prompt in prompts], starts, layer)
    for rows, states in counted(read, len(ids), "embeddings", lambda part: len(part[0])):
        embeddings[rows] = states.pooled.float().cpu()
    return checked(embeddings)


def with_margins(
    pairs, margins: Tensor, scale: str = "unit", negative: str = "keep", size: float = 1.0, column: str = "margin"
):
    """Preference `Dataset` with a `column` of margins in units of score; raw `margins` (N,) in its row order. A column
    of that name that is there already is an `InputError`.

    "drop" leaves out the pairs of a negative margin; "flip" swaps their chosen and rejected answers, and all columns
    that come in two for them (`two_sided`).
    """
    if len(margins) != len(pairs):
        raise InputError(f"margins: {len(margins)} for {len(pairs)} pairs; give one for each")
    if column in pairs.column_names:
        raise InputError(f"preferences: there is a column {column} already, which ours would replace; rename it")
    scaled, swap = scale_margins(margins, scale, negative, size), (margins < 0).tolist()
    for one, other in two_sided(pairs.column_names) if negative == "flip" else ():
        sides = zip(pairs[one], pairs[other], swap, strict=True)
        left, right = zip(*((r, c) if swapped else (c, r) for c, r, swapped in sides), strict=True)
        pairs = pairs.remove_columns([one, other]).add_column(one, list(left)).add_column(other, list(right))
    return pairs.add_column(column, scaled.tolist()).select((~scaled.isnan()).nonzero().flatten().tolist())


def splits_with_margins(
    preferences: Mapping, margins: Mapping[str, Tensor], scale: str, negative: str, size: float
) -> DatasetDict:
    """`with_margins` for every split: the policy `negative` is that of the training pairs, the other splits keep all
    of theirs."""
    policy = {name: negative if name == "train" else "keep" for name in preferences}
    return DatasetDict(
        {name: with_margins(pairs, margins[name], scale, policy[name], size) for name, pairs in preferences.items()}
    )


def length_correlation(margins: Tensor, chosen: Sequence, rejected: Sequence) -> float:
    """Pearson correlation of margins with the difference in words; 0 when either is constant.

    Far from 0 the margin measures length: use more refusals.
    """
    return correlation(margins, length_differences(chosen, rejected))


def length_differences(chosen: Sequence, rejected: Sequence) -> list[int]:
    """How many words more each chosen answer has than its rejected one; texts or messages."""
    return [len(text_of(c).split()) - len(text_of(r).split()) for c, r in zip(chosen, rejected, strict=True)]
