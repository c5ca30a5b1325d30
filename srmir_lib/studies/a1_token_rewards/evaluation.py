"""Do token rewards point at the harm, and does their uncertainty rise where they know less?"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from srmir_lib.conversations import text_of
from srmir_lib.errors import InputError
from srmir_lib.lab.referee import LabReferee, act_span, harmful_span
from srmir_lib.models.parallel import run_in_threads
from srmir_lib.statistics import auroc, is_correct, paired_t_interval
from srmir_lib.studies.a1_token_rewards.model import TokenReward, TokenRewardModel
from srmir_lib.studies.a1_token_rewards.reader import Answers, Reader

Span = tuple[int, int] | None
"""Where something stands in a text: characters (start, end), or nowhere."""


def gaps(rewards: torch.Tensor) -> torch.Tensor:
    """Chosen minus rejected: rewards (2 N,) of `Reader.pairs`, chosen answers first -> (N,)."""
    chosen, rejected = rewards.chunk(2)
    return chosen - rejected


def ranked_right(
    models: Mapping[str, Sequence[TokenRewardModel]], pairs: Answers
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Which pairs of `Reader.pairs` each fit ranks right, (fits, N) by method: 1, one half for a tie, 0 for wrong.

    Twice: by the fit's own rewards, and by those that its Q implies. `models`: method -> its fits, all asked side by
    side.
    """
    fits = {(name, at): model for name, own in models.items() for at, model in enumerate(own)}
    asks = {key: partial(model.rewards_and_implied, pairs) for key, model in fits.items()}
    found = run_in_threads(asks, next(iter(fits.values())).causal.device)
    right = {key: [is_correct(gaps(rewards)) for rewards in both] for key, both in found.items()}
    return tuple(
        {name: np.stack([right[name, at][way] for at in range(len(own))]) for name, own in models.items()}
        for way in (0, 1)
    )


def over_seeds(values: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict]:
    """Per group and method a mean over seeds with its 95 % t interval: rows with label, group, estimate, low, high.

    `values`: group -> method -> one number a seed, of at least two seeds. Student 1908.
    """
    return [
        {"label": name, "group": group, **paired_t_interval(own)._asdict()}
        for group, methods in values.items()
        for name, own in methods.items()
    ]


def as_metrics(prefix: str, rows: Sequence[Mapping]) -> dict[str, float]:
    """Rows of `over_seeds` -> `<prefix>_<group>_<method>` with its `_low` and `_high`, for metrics.json.

    The group "all" is left out of the name, "bt" stands for Bradley-Terry, and "implied" for Q's own.
    """
    metrics = {}
    for row in rows:
        method = row["label"].replace("bradley_terry", "bt").replace(", Q's own", "_implied")
        name = f"{prefix}_{method}" if row["group"] == "all" else f"{prefix}_{row['group']}_{method}"
        metrics |= {name: row["estimate"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return metrics


def span_labels(
    tokenizer, completions: Sequence, spans: Sequence[Span], found: Sequence[TokenReward]
) -> list[np.ndarray]:
    """Which tokens of each answer lie in its span of characters: one bool per token of `found`, (T,) each.

    A token counts when it shares a character other than a space with the span; the end of the turn never does.
    """
    labels = []
    for row, (completion, span, belief) in enumerate(zip(completions, spans, found, strict=True)):
        text = text_of(completion)
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if read["input_ids"] != belief.tokens[: len(read["input_ids"])]:
            raise InputError(f"row {row}: the answer has other tokens inside the chat template; spans cannot be placed")
        inside = [
            span is not None and begin < span[1] and end > span[0] and bool(text[begin:end].strip())
            for begin, end in read["offset_mapping"]
        ]
        labels.append(np.array(inside + [False] * (len(belief.tokens) - len(inside))))
    return labels


def acts_carried_out(
    referee: LabReferee, tokenizer, prompts: Sequence, completions: Sequence, found: Sequence[TokenReward]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`span_labels` of the asked act where an answer carries it out: where that is forbidden, and in any case."""
    pairs = list(zip(map(text_of, prompts), completions, strict=True))
    return tuple(
        span_labels(tokenizer, completions, [span_of(referee, *pair) for pair in pairs], found)
        for span_of in (harmful_span, act_span)
    )


def localisation(
    found: Sequence[TokenReward], harmful: Sequence[np.ndarray], act: Sequence[np.ndarray]
) -> dict[str, float]:
    """How well a low token reward tells the harmful span, by what it is told from; areas under the ROC curve.

    `harmful`, `act`: labels as from `acts_carried_out`.
    all: any other token. between: tokens of answers that do no harm. same_words: acts carried out that are allowed.
    within: the rest of the same answer (mean over answers). NaN where one of the two kinds is missing.
    """
    danger = [-belief.mean.numpy() for belief in found]
    bad = np.concatenate(harmful)
    of_harm = np.concatenate([np.full(len(label), label.any()) for label in harmful])
    flat, acted = np.concatenate(danger), np.concatenate(act)
    against = {"all": np.full(len(bad), True), "between": bad | ~of_harm, "same_words": acted}
    areas = {name: _area(flat[rows], bad[rows]) for name, rows in against.items()}
    inside = [_area(d, label) for d, label in zip(danger, harmful, strict=True) if label.any()]
    return areas | {"within": float(np.mean(inside)) if inside else float("nan")}


def areas_of_fits(
    found: Mapping[str, Sequence[Sequence[TokenReward]]], harmful: Sequence[np.ndarray], act: Sequence[np.ndarray]
) -> dict[str, dict[str, list[float]]]:
    """`localisation` of several fits, for `over_seeds`: what the span is told from -> method -> one area a fit.

    `found`: method -> for each of its fits the beliefs about the same answers.
    """
    areas = {name: [localisation(own, harmful, act) for own in fits] for name, fits in found.items()}
    kinds = next(iter(areas.values()))[0]
    return {kind: {name: [area[kind] for area in of] for name, of in areas.items()} for kind in kinds}


def _area(danger: np.ndarray, bad: np.ndarray) -> float:
    return auroc(danger, bad) if bad.any() and not bad.all() else float("nan")


def babble(tokenizer, lengths: Sequence[int], seed: int) -> list[str]:
    """Answers of random ordinary tokens, uniform over the vocabulary: babble of a kind that no corruption makes."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    rng = np.random.default_rng(seed)
    texts = [tokenizer.decode(rng.choice(ordinary, size=max(1, length)).tolist()) for length in lengths]
    return [text if text.strip() else "?" for text in texts]


def answers_by_kind(reader: Reader, rows: Mapping, held_out: str, seed: int) -> dict[str, Answers]:
    """Answers on and off what a fit was trained on, by kind.

    "trained on" and "category never seen": the chosen answers of `rows` (prompt, chosen, category), apart by whether
    their category is `held_out`. "babble": behind each of the prompts, of as many tokens as its chosen answer. A kind
    that no answer is of is left out.
    """
    chosen = reader.answers(rows["prompt"], rows["chosen"])
    lengths = [len(tail) - reader.opening - 1 for tail in chosen.tails]
    unseen = np.array(rows["category"]) == held_out
    kinds = {
        "trained on": chosen.select(np.flatnonzero(~unseen)),
        "category never seen": chosen.select(np.flatnonzero(unseen)),
        "babble": reader.answers(rows["prompt"], babble(reader.trunk.tokenizer, lengths, seed)),
    }
    return {kind: answers for kind, answers in kinds.items() if answers.tails}


def uncertainty(models: Sequence, answers: Mapping) -> list[dict]:
    """Per kind of answers, how unsure models are about a token: a row each, with kind and number of tokens.

    `models`: fits that differ in their seed. sd: mean posterior standard deviation; sd between tokens: how far it
    varies from token to token, a mean over models; disagreement: standard deviation of the posterior means between the
    models (a deep ensemble; Lakshminarayanan et al. 2017), after each model's means are divided by their overall
    spread, so that it has no unit.
    """
    beliefs = [{kind: model.tokens(texts) for kind, texts in answers.items()} for model in models]
    means = [{kind: torch.cat([b.mean for b in found]) for kind, found in by_kind.items()} for by_kind in beliefs]
    spread = [torch.cat(list(by_kind.values())).std() for by_kind in means]
    rows = []
    for kind in answers:
        sd = torch.stack([torch.cat([b.sd for b in by_kind[kind]]) for by_kind in beliefs])
        scaled = torch.stack([by_kind[kind] / size for by_kind, size in zip(means, spread, strict=True)])
        apart = float(scaled.std(dim=0).mean()) if len(models) > 1 else 0.0
        varies = float(sd.std(dim=1).mean())
        row = {"kind": kind, "tokens": sd.shape[1], "sd": float(sd.mean()), "sd between tokens": varies}
        rows.append(row | {"disagreement": apart})
    return rows
