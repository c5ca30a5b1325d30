"""Do token rewards point at the harm, and does their uncertainty rise where they know less?"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from srmir_lib.conversations import text_of
from srmir_lib.errors import InputError
from srmir_lib.statistics import auroc, paired_t_interval
from srmir_lib.studies.a1_token_rewards.model import TokenReward

Span = tuple[int, int] | None
"""Where something stands in a text: characters (start, end), or nowhere."""


def gaps(rewards: torch.Tensor) -> torch.Tensor:
    """Chosen minus rejected: rewards (2 N,) of `Reader.pairs`, chosen answers first -> (N,)."""
    chosen, rejected = rewards.chunk(2)
    return chosen - rejected


def over_seeds(values: Mapping[str, Sequence[float]], group: str = "") -> list[dict]:
    """Per method a mean over seeds with its 95 % t interval: rows with label, group, estimate, low, high.

    `values`: method -> one number a seed, of at least two seeds. Student 1908.
    """
    return [
        {"label": name, "group": group, **paired_t_interval(own, np.zeros(len(own)))._asdict()}
        for name, own in values.items()
    ]


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


def localisation(
    found: Sequence[TokenReward], harmful: Sequence[np.ndarray], act: Sequence[np.ndarray]
) -> dict[str, float]:
    """How well a low token reward tells the harmful span, by what it is told from; areas under the ROC curve.

    `harmful`, `act`: labels as from `span_labels`, of forbidden acts carried out and of all asked acts carried out.
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


def _area(danger: np.ndarray, bad: np.ndarray) -> float:
    return auroc(danger, bad) if bad.any() and not bad.all() else float("nan")


def babble(tokenizer, lengths: Sequence[int], seed: int) -> list[str]:
    """Answers of random ordinary tokens, uniform over the vocabulary: babble of a kind that no corruption makes."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    rng = np.random.default_rng(seed)
    texts = [tokenizer.decode(rng.choice(ordinary, size=max(1, length)).tolist()) for length in lengths]
    return [text if text.strip() else "?" for text in texts]


def uncertainty(models: Sequence, answers: Mapping) -> list[dict]:
    """Per kind of answers, how unsure models are about a token: rows with kind, tokens, sd, disagreement.

    `models`: fits that differ in their seed. sd: mean posterior standard deviation. disagreement: standard deviation
    of the posterior means between the models (a deep ensemble; Lakshminarayanan et al. 2017), after each model's
    means are divided by their overall spread, so that it has no unit.
    """
    beliefs = [{kind: model.tokens(texts) for kind, texts in answers.items()} for model in models]
    means = [{kind: torch.cat([b.mean for b in found]) for kind, found in by_kind.items()} for by_kind in beliefs]
    spread = [torch.cat(list(by_kind.values())).std() for by_kind in means]
    rows = []
    for kind in answers:
        sd = torch.stack([torch.cat([b.sd for b in by_kind[kind]]) for by_kind in beliefs])
        scaled = torch.stack([by_kind[kind] / size for by_kind, size in zip(means, spread, strict=True)])
        apart = float(scaled.std(dim=0).mean()) if len(models) > 1 else 0.0
        rows.append({"kind": kind, "tokens": sd.shape[1], "sd": float(sd.mean()), "disagreement": apart})
    return rows
