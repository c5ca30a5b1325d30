"""Preference pairs as every design learns from them: tokens, who sees which, and what an objective wants of each."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from srmir_lib.artifacts import digest
from srmir_lib.conversations import conversation_ids, render, text_of
from srmir_lib.data.preferences import as_pairs
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import load_trunk, resolve_encoder
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.legend import margin_loss
from srmir_lib.papers.pcrm import PCRM_CONSTANTS, angle_similarity, length_similarity, pcrm_limit, pcrm_loss
from srmir_lib.papers.srmir import bradley_terry_loss
from srmir_lib.settings.reward_training import LIMITS, RewardSettings
from srmir_lib.taxonomy import ALL, UNKNOWN, ordered


def reverse(pairs: Dataset, swap: Sequence[bool]) -> Dataset:
    """The same pairs, chosen and rejected exchanged where `swap` (N,) says so."""
    columns = {name: pairs[name][:] for name in pairs.column_names}
    sides = [(r, c) if one else (c, r) for c, r, one in zip(columns["chosen"], columns["rejected"], swap, strict=True)]
    columns["chosen"], columns["rejected"] = map(list, zip(*sides, strict=True)) if sides else ([], [])
    return Dataset.from_dict(columns, features=pairs.features)


def swap_labels(pairs: Dataset, share: float, seed: int) -> Dataset:
    """The same pairs, `share` of them (rounded) with their answers exchanged; which ones follows from the `seed`. Half
    of them: labels that say nothing."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    wrong = {*order[: round(share * len(pairs))].tolist()}
    return reverse(pairs, [row in wrong for row in range(len(pairs))]) if wrong else pairs


class TokenizedPairs:
    """Preference pairs, tokenized once for any number of sets on a trunk."""

    def __init__(self, trunk: Trunk, pairs, settings: RewardSettings):
        """`pairs`: rows of chosen, rejected, category and, if it is not in both answers, prompt (`as_pairs`).
        `settings`: how long a conversation may be; what else they say may differ from set to set."""
        self.trunk, self.pairs = trunk, as_pairs(pairs)
        longest = min(settings.max_length, trunk.longest or settings.max_length)
        self.data = tokenize_pairs(trunk.tokenizer, self.pairs, longest)
        self.digests = list(map(digest, self.data))

    def rows(
        self, categories: Sequence[str], settings: RewardSettings, training: str, seed: int, competence=None
    ) -> dict[str, list[int]]:
        """Which pairs each model sees, by `select_pairs`; `competence`: what a single model must cover."""
        labels, covered = list(self.pairs["category"]), list(competence if competence is not None else categories)
        ratios = settings.cross_ratio, settings.unknown_ratio, seed
        return {name: select_pairs(labels, name, covered, training, *ratios) for name in categories}

    def target(self, settings: RewardSettings) -> Tensor | None:
        """What the objective wants of each reward gap, (N,) in score units: its margin, its limit, or nothing."""
        ids = self.data["chosen_ids"], self.data["rejected_ids"]
        return pair_targets(settings, self.pairs, *ids, (self.trunk.model, self.trunk.tokenizer))

    def key(
        self,
        rows: Mapping[str, Sequence[int]],
        target: Tensor | None,
        settings: RewardSettings,
        training: str,
        seed: int,
    ) -> dict:
        """All that decides a fit: a finished one with the same key is kept."""
        wanted = target.tolist() if target is not None else [None] * len(self.digests)
        seen = {name: [(self.digests[row], wanted[row]) for row in own] for name, own in rows.items()}
        return {
            "settings": settings.model_dump(),
            "seed": seed,
            "training": training,
            "base_sha256": self.trunk.sha256,
            "dtype": self.trunk.dtype,
            "pairs": {name: len(own) for name, own in rows.items()},
            "pairs_sha256": digest(seen),
        }


def categories_of(*labels: Sequence[str]) -> list[str]:
    """The categories that occur among any of these labels, as `ordered`; "unknown" is none."""
    return [name for name in ordered(set().union(*labels)) if name != UNKNOWN]


def select_pairs(
    labels: Sequence[str],
    category: str,
    categories: Sequence[str],
    training: str = "own",
    cross_ratio: float = 0.0,
    unknown_ratio: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Rows that one model sees, sorted. "own": its category's pairs and a sample of the unknown ones; "cross": also a
    sample of the other categories'. `ALL`, unless pairs are labelled so, sees whatever the models of `categories` see
    together, each row once."""
    if training not in ("own", "cross"):
        raise InputError(f"training: {training!r} is neither own nor cross")
    if category == ALL and ALL not in categories:
        parts = (select_pairs(labels, c, categories, training, cross_ratio, unknown_ratio, seed) for c in categories)
        return sorted(set().union(*parts))
    own = [row for row, label in enumerate(labels) if label == category]
    if not own:
        raise InputError(f"preferences: no pair of category {category}; collect some, or leave the category out")
    generator = torch.Generator().manual_seed(seed * 1000 + list(categories).index(category))
    chosen = list(own)
    unknown = [row for row, label in enumerate(labels) if label == UNKNOWN]
    others = [row for row, label in enumerate(labels) if label in categories and label != category]
    for pool, ratio in ((unknown, unknown_ratio), (others, cross_ratio if training == "cross" else 0.0)):
        order = torch.randperm(len(pool), generator=generator).tolist()
        chosen += [pool[at] for at in order[: round(ratio * len(own))]]
    return sorted(chosen)


def tokenize_pairs(tokenizer, pairs, max_length: int):
    """Preference rows -> `Dataset` of `chosen_ids` and `rejected_ids`, as `RewardTrainer` takes them.

    TRL drops pairs that are too long, in silence; here any is an `InputError` that counts them and names the first.
    """
    check_round_trip(tokenizer, [text_of(answer) for answer in pairs["chosen"]])
    try:
        for side in ("chosen", "rejected"):
            render(tokenizer, pairs["prompt"], pairs[side])  # what the template refuses
    except RowError as error:
        raise InputError(f"preferences: {error}; rows are counted from 0") from error
    sides = ("chosen", "rejected")
    columns = {f"{side}_ids": conversation_ids(tokenizer, pairs["prompt"], pairs[side]) for side in sides}
    lengths = [max(map(len, both)) for both in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True)]
    longer = [row for row, length in enumerate(lengths) if length > max_length]
    if longer:
        raise InputError(
            f"preferences: {len(longer)} pairs exceed max_length {max_length} (or what the model reads): first row "
            f"{longer[0]} (from 0) with {lengths[longer[0]]} tokens; the longest has {max(lengths)}; leave them out"
        )
    return Dataset.from_dict(columns)


def check_round_trip(tokenizer, texts: Sequence[str]) -> None:
    """Refuse a tokenizer that loses words: decoded again, each text must have its letters, white space, case and
    compatible characters aside."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    for row, (text, back) in enumerate(zip(texts, map(tokenizer.decode, ids), strict=True)):
        plain, again = ("".join(unicodedata.normalize("NFKC", words).split()).casefold() for words in (text, back))
        if plain != again:
            raise InputError(
                f"tokenizer: the chosen answer of row {row} has {len(plain)} letters and comes back with {len(again)}, "
                "or with others; use a tokenizer that keeps every word"
            )


def pair_batches(counts: Sequence[int], batch_size: int, steps: int, seed: int) -> Iterator[list[list[int]]]:
    """For every step, and every model, which of its `counts[j]` pairs it sees: epochs of its own, each shuffled."""
    generators = [torch.Generator().manual_seed(seed * 1000 + j) for j in range(len(counts))]
    queues: list[list[int]] = [[] for _ in counts]
    for _ in range(steps):
        batch = []
        for queue, count, generator in zip(queues, counts, generators, strict=True):
            while len(queue) < batch_size:
                queue.extend(torch.randperm(count, generator=generator).tolist())
            batch.append(queue[:batch_size])
            del queue[:batch_size]
        yield batch


def pair_loss(objective: str):
    """The loss of an objective, of chosen scores, rejected scores and, if it has one, the target, (N,) each."""
    if objective == "bradley_terry":
        return bradley_terry_loss
    return pcrm_loss if objective in LIMITS else margin_loss


def pair_targets(settings, pairs, chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], reader):
    """The target of every pair's gap, (N,) in score units: its `margin`, its limit, or None (Bradley-Terry has none).

    `settings`: a `RewardSettings` or `EncoderSettings`. `pairs`: rows with prompt, chosen, rejected; `chosen`,
    `rejected`: their token ids. `reader`: a frozen model and its tokenizer, which tell how similar two answers are
    unless the settings name another.
    """
    if settings.objective == "bradley_terry":
        return None
    target = _margins(pairs) if settings.objective == "margin" else _limits(settings, pairs, chosen, rejected, reader)
    if settings.targets == "mean":
        return target.mean().expand(len(target))
    if settings.targets == "shuffled":
        return target[torch.randperm(len(target), generator=torch.Generator().manual_seed(0))]
    return target


def _limits(settings, pairs, chosen, rejected, reader) -> Tensor:
    if settings.objective == "pcrm_length":
        similarity = length_similarity(chosen, rejected)
    else:
        if settings.similarity_model:
            device = str(reader[0].device) if reader else "auto"
            reader = load_trunk(resolve_encoder(settings.similarity_model), device)
        similarity = answer_similarity(pairs, *reader)
    constants = settings.limit or PCRM_CONSTANTS[settings.objective.removeprefix("pcrm_")]
    return pcrm_limit(similarity, *constants, cap=settings.limit_cap)


def answer_similarity(pairs, model, tokenizer) -> Tensor:
    """Angle similarity (N,) of a pair's two answers: means over their tokens, as a frozen model reads them in place."""
    sides = (pairs[side] for side in ("chosen", "rejected"))
    return angle_similarity(*(embed(model, tokenizer, pairs["prompt"], side, pooling="mean") for side in sides))


def _margins(pairs) -> Tensor:
    if "margin" not in pairs.column_names:
        raise InputError("preferences: the objective needs a column margin; run 03_margins, or use bradley_terry")
    values = list(pairs["margin"])
    for row, value in enumerate(values):
        if not isinstance(value, int | float):
            raise InputError(f"preferences: the margin of row {row} is {value!r}, not a number; run 03_margins again")
    margin = torch.tensor(values, dtype=torch.float32)
    if not margin.isfinite().all():
        raise InputError(f"preferences: the margin of row {int((~margin.isfinite()).nonzero()[0])} is not finite")
    return margin
