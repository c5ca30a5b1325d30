"""The hypothesis of RBRM (Deng et al. 2025): off-policy, the order of outputs changes, and their distribution hardly.

`follow` reads the same answers with every policy of a training; `course_figure` draws both, `about_course` says it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from torch import Tensor

from srmir_lib.conversations import text_of
from srmir_lib.errors import InputError
from srmir_lib.evaluation.evaluate import each_policy
from srmir_lib.evaluation.plots import gridded, marker_of, style_of, subplots
from srmir_lib.evaluation.sentences import joined
from srmir_lib.models.embeddings import embed
from srmir_lib.models.generation import generate
from srmir_lib.papers.grpo import kl_estimate
from srmir_lib.policies.callbacks import answer_ids, token_log_probabilities
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.statistics import rank_correlation, two_sample_test
from srmir_lib.studies.a2_reranking.rounds import flat, pool_scores

MICRO_BATCH = 64

EMPTY = "."
"""What stands for an answer without a word, which has no states."""


def mean_rank_correlation(scores: Tensor, others: Tensor) -> tuple[float, float]:
    """Spearman's correlation of two orders of each prompt's answers (P, K), (P, K): the mean over prompts and its
    standard error; a prompt whose answers all score the same counts 0. P >= 2."""
    if len(scores) < 2:
        raise InputError(f"watching.course_pools: {len(scores)} pool has no standard error; read two or more")
    kept = np.array(list(map(rank_correlation, scores.tolist(), others.tolist())))
    return float(kept.mean()), float(kept.std(ddof=1) / len(kept) ** 0.5)


def follow(
    base_model: str | Path,
    policies: Mapping[str, str | Path],
    pool: Dataset,
    readouts: ReadOuts,
    held_out: Dataset,
    reader,
    device: str = "auto",
    **sampling,
) -> dict[str, dict[str, float]]:
    """What became of order and distribution, by policy (name -> folder of an adapter); the first is the start, from
    which the `pool` was sampled and off whose states the `readouts` were learned; they stay as they are.

    `order by states` and `order by likelihood` (the sum over an answer's tokens): `mean_rank_correlation` with the
    start; `error of order`: the standard error over prompts of the order by states; `KL`: KL[start | policy] on the
    pool's answers, the start's own samples (k3; nats a token; at the temperature of the `sampling`); `held-out`: the
    log-likelihood of `held_out` answers (columns prompt, completion; nats a token); `new samples`: the squared maximum
    mean discrepancy between the pool and as many answers that the policy samples now (`sampling` of `generate`), on the
    mean states of the model `reader`, with its `p` by permutation; the start's own is the null run.
    """
    found, first = {}, None
    prompts, pooled = flat(pool)
    groups = [row for row, responses in enumerate(pool["responses"]) for _ in responses]
    for name, policy, tokenizer in each_policy(base_model, policies, device):
        said = answer_ids(policy, tokenizer, prompts, pooled)
        read = token_log_probabilities(policy, *said, MICRO_BATCH, sampling["temperature"])
        likely = torch.cat([(token * on).sum(1) for token, on in read]).view(len(pool), -1)
        scores = pool_scores(policy.get_base_model(), tokenizer, pool, readouts)
        first = first or (scores, likely, read)
        apart = [
            (kl_estimate(own * on, token * on).sum(), on.sum())
            for (token, on), (own, _) in zip(read, first[2], strict=True)
        ]
        shown = answer_ids(policy, tokenizer, held_out["prompt"], list(map(text_of, held_out["completion"])))
        outside = token_log_probabilities(policy, *shown, MICRO_BATCH)
        anew = generate(policy, tokenizer, prompts, **sampling)
        spoken = [text or EMPTY for text in anew]
        both = (embed(reader, tokenizer, prompts, texts, pooling="mean") for texts in (pooled, spoken))
        away, p = two_sample_test(*both, groups)
        kept, error = mean_rank_correlation(scores, first[0])
        found[name] = {
            "order by states": kept,
            "error of order": error,
            "order by likelihood": mean_rank_correlation(likely, first[1])[0],
            "KL": float(sum(kl for kl, _ in apart) / sum(count for _, count in apart)),
            "held-out": float(sum((t * on).sum() for t, on in outside) / sum(on.sum() for _, on in outside)),
            "new samples": away,
            "p": p,
        }
    return found


PANELS = ("order by states", "order by likelihood", "KL", "new samples")
TITLES = (
    "order by states (rank correlation)",
    "order by likelihood (rank correlation)",
    "KL[start | policy] (nats a token)",
    "new samples against the pool (MMD, squared)",
)


def course_figure(lines: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]]) -> Figure:
    """Above the order, below the distribution, over updates: name -> (updates, a row of `follow`)."""
    figure, panels = subplots(2, 2, figsize=(8, 5.4))
    for axis, key, title in zip(panels.flat, PANELS, TITLES, strict=True):
        for at, (name, points) in enumerate(lines.items()):
            style = style_of(at) | {"marker": marker_of(at), "markersize": 4, "label": name}
            axis.plot([step for step, _ in points], [row[key] for _, row in points], **style)
        gridded(axis, xlabel="updates", title=title)
    panels.flat[0].legend(fontsize=7)
    return figure


def about_course(last: Mapping[str, Mapping[str, float]], on_policy: Sequence[str], moved: float, near: float) -> str:
    """Whether the order moved while the distribution stayed, by policy at its end (rows of `follow`).

    The order by states moved where its rank correlation lies two standard errors or more below `moved`, the
    distribution stayed where KL is below `near`. The policies `on_policy`, which train on their own samples, are what
    the others are held against: did both happen under all others, and under none of these, of which the estimate alone
    counts, so that their noise cannot speak for the hypothesis? And whose order moved more per nat of KL than theirs?
    """
    turned = [name for name, row in last.items() if row["order by states"] + 2 * row["error of order"] < moved]
    both = [name for name in turned if last[name]["KL"] < near]
    own = [name for name in on_policy if last[name]["order by states"] < moved and last[name]["KL"] < near]
    said = [
        f"{name} {row['order by states']:.3f} (± {2 * row['error of order']:.3f}) at KL {row['KL']:.3f}"
        for name, row in last.items()
    ]
    pace = {name: (1 - row["order by states"]) / max(row["KL"], 1e-6) for name, row in last.items()}
    faster = [name for name in turned if pace[name] > max(pace[one] for one in on_policy)]
    holds = "holds" if not own and {*both} == {*last} - {*on_policy} else "does not hold"
    return (
        f"Order kept (1: all of it; ± two standard errors over prompts): {'; '.join(said)}. The order moved (clearly "
        f"below {moved}) while the distribution stayed (KL below {near}) under: {joined(both)}. Per nat of KL it moved "
        f"more than under those that train on their own samples ({joined(on_policy)}) under: {joined(faster)}. The "
        f"hypothesis, that off-policy, and only there, an order moves while the distribution stays, {holds} here."
    )


def about_new_samples(start: Mapping[str, float], last: Mapping[str, Mapping[str, float]]) -> str:
    """Whose new samples a two-sample test tells from the pool (p at most .05, and farther from it than the `start`'s
    own); nobody's, where it tells even the start's own apart, which are of the same distribution: the null run."""
    null = f"Null run: the start's new samples against its own pool, p = {start['p']:.3f}"
    if start["p"] <= 0.05:
        return f"{null}; a test that tells these apart says nothing of the others."
    told = [name for name, row in last.items() if row["p"] <= 0.05 and row["new samples"] > start["new samples"]]
    return (
        f"{null}. New samples are told from the pool (p at most .05, and farther from it than the start's own) under: "
        f"{joined(told)}."
    )
