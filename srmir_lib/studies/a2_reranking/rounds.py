"""Train in rounds: rank a fixed pool by the present policy's own states, make pairs of it, train on them, begin again.

Deng et al. 2025 (arXiv 2503.10093: RBRM). Each round is a run of TRL's trainer that goes on from the policy before it,
while the reference stays the start (`train_dpo(reference=)`). Ours: Adam's moments begin anew in a round, for methods
that rank again, for those that do not, and for online DPO.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from scipy.stats import binomtest
from torch import Tensor

from srmir_lib.conversations import assistant_message, text_of
from srmir_lib.data.margins import distinct_texts
from srmir_lib.errors import InputError
from srmir_lib.evaluation.sentences import joined, signed
from srmir_lib.evaluation.training_report import ends
from srmir_lib.models.embeddings import check_layer, embed_layers
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.papers.rbrm import best_and_worst, pair_confidence
from srmir_lib.policies.groups import sample_groups
from srmir_lib.policies.training import train_dpo, train_online_dpo
from srmir_lib.reward_models.pairs import reverse
from srmir_lib.reward_models.readouts import ReadOuts, all_layers, learn_readouts
from srmir_lib.settings.appendices import ReadoutTraining
from srmir_lib.settings.policies import DPOSettings
from srmir_lib.statistics import bootstrap_interval, is_correct

SIDES = ("chosen", "rejected")


def labelled_by(referee, pairs: Dataset) -> Dataset:
    """The same pairs with the better answer, by the referee, as chosen; pairs it finds equally good are left out."""
    prompts = [text_of(prompt) for prompt in pairs["prompt"]]
    worth = [[v.goodness for v in referee(prompts, [text_of(said) for said in pairs[side]])] for side in SIDES]
    chosen, rejected = (torch.tensor(side) for side in worth)
    apart = (chosen != rejected).nonzero().flatten().tolist()
    if not apart:
        raise InputError(f"labels: the referee finds both answers of all {len(pairs)} pairs equally good; give others")
    return reverse(pairs, (chosen < rejected).tolist()).select(apart)


def side_states(policy, tokenizer, pairs: Dataset, layers: Sequence[int], pooling: str) -> tuple[Tensor, Tensor]:
    """States (N, L, H) of the chosen and of the rejected answers of pairs, as `embed_layers` reads them; an answer that
    comes several times is read once."""
    prompts, answers, at = distinct_texts(pairs["prompt"], *(pairs[side] for side in SIDES))
    states = embed_layers(policy, tokenizer, prompts, answers, layers, pooling)
    return states[at[0]], states[at[1]]


def compare_readouts(
    policy,
    tokenizer,
    labelled: Mapping[str, Dataset],
    gold: Dataset,
    told: ReadoutTraining,
    model: str,
    seed: int,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, ReadOuts]]:
    """Whether read-outs of `policy` rank each of the `gold` pairs rightly (1, 0, a tie one half; (N,)), by who labelled
    the pairs that they learned from (name -> pairs) and what is read (all layers or `told.layer`, the last token or the
    mean); and by the same names the read-outs of all layers, pooled as `told` says.

    `model`: what tells this policy from others (`ReadOuts`).
    """
    layers = all_layers(policy)
    check_layer(policy, told.layer, told.pooling)
    if not told.layer % (len(layers) + 1):
        raise InputError(f"readouts.layer: {told.layer} is the token's embedding, which has read nothing; name another")
    one = layers.index(told.layer % (len(layers) + 1))
    right, fits = {name: {} for name in labelled}, {}
    how = {"epochs": told.epochs, "learning_rate": told.learning_rate, "seed": seed}
    for pooling in ("last", "mean"):
        both = concatenate_datasets([pairs.select_columns(["prompt", *SIDES]) for pairs in (*labelled.values(), gold)])
        sizes = [len(pairs) for pairs in (*labelled.values(), gold)]
        *seen, test = zip(
            *(side.split(sizes) for side in side_states(policy, tokenizer, both, layers, pooling)), strict=True
        )
        for name, sides in zip(labelled, seen, strict=True):
            for reads, places in {"all layers": list(range(len(layers))), f"layer {layers[one]}": [one]}.items():
                kept = [layers[place] for place in places]
                fit = learn_readouts(*(side[:, places] for side in sides), kept, pooling, model, **how)
                chosen, rejected = (fit.score(side[:, places]) for side in test)
                right[name][f"{reads}, {pooling}"] = is_correct(chosen - rejected)
                if len(kept) == len(layers) and pooling == told.pooling:
                    fits[name] = fit
    return right, fits


def about_readouts(right: Mapping[str, Mapping[str, np.ndarray]], prompts: Sequence) -> str:
    """Whether all layers are better than one, and the last token than the mean, by the rows of `compare_readouts` on
    pairs of `prompts` (N,), with intervals over prompts; expected: both, whoever labelled."""
    asked = np.unique([text_of(prompt) for prompt in prompts], return_inverse=True)[1]
    said = []
    for name, of in right.items():
        all_last, all_mean, one_last = (
            next(value for reads, value in of.items() if reads.startswith(start) and reads.endswith(end))
            for start, end in (("all", "last"), ("all", "mean"), ("layer", "last"))
        )
        for what, rival in {"all layers minus one": one_last, "last token minus mean": all_mean}.items():
            gain = bootstrap_interval(np.bincount(asked, all_last - rival) / np.bincount(asked))
            held = "as expected" if gain.low > 0 else "not as expected"
            said.append(f"{name}, {what} {signed(gain.estimate)} ({signed(gain.low)} to {signed(gain.high)}), {held}")
    return f"Accuracy on test pairs, a mean over prompts: {'; '.join(said)}."


def sample_pool(policy, tokenizer, asked: Dataset, size: int, **sampling) -> tuple[Dataset, int]:
    """A pool: the rows of `asked` (a column prompt) with a column responses, `size` texts sampled from a policy,
    `sampling` as of `generate`. And how many rows are left out, because an answer is empty or all are the same: no pair
    could be made of these."""
    answers = sample_groups(policy, tokenizer, asked["prompt"], size, **sampling)
    rows = [
        row | {"responses": group}
        for row, group in zip(asked, answers, strict=True)
        if all(text.strip() for text in group) and len({*group}) > 1
    ]
    if not rows:
        raise InputError(f"pool: none of {len(asked)} prompts has {size} answers to be ranked; sample more of them")
    return Dataset.from_list(rows), len(asked) - len(rows)


def flat(pool: Dataset) -> tuple[list, list[str]]:
    """Prompts and answers of a pool, P * K each, those of a prompt behind one another."""
    size = len(pool[0]["responses"])
    prompts = [prompt for prompt in pool["prompt"] for _ in range(size)]
    return prompts, [text for group in pool["responses"] for text in group]


def pool_scores(policy, tokenizer, pool: Dataset, readouts: ReadOuts) -> Tensor:
    """Scores (P, K) of a pool, read off the states of `policy`."""
    return readouts.score(readouts.read(policy, tokenizer, *flat(pool))).view(len(pool), -1)


def ranked_pairs(pool: Dataset, scores: Tensor, trust: str, seed: int) -> Dataset:
    """Pairs, best against worst of each pool by `scores` (P, K), with `score_chosen` and `score_rejected`.

    `trust`: pair adds a column `confidence`, `pair_confidence` of these scores; shuffled adds the same numbers, dealt
    out anew to the pairs; batch and none add nothing (a batch's confidence is the trainer's to find).
    """
    places = [at.tolist() for at in best_and_worst(scores)]
    best, worst = (scores.gather(1, torch.tensor(at).unsqueeze(1)).squeeze(1) for at in places)
    columns = {"prompt": pool["prompt"][:]}
    for side, at, found in zip(SIDES, places, (best, worst), strict=True):
        columns[side] = [assistant_message(own[one]) for own, one in zip(pool["responses"], at, strict=True)]
        columns[f"score_{side}"] = found.tolist()
    if trust in ("pair", "shuffled"):
        sure = pair_confidence(best, worst)
        if trust == "shuffled":
            sure = sure[torch.randperm(len(sure), generator=torch.Generator().manual_seed(seed))]
        columns["confidence"] = sure.tolist()
    return Dataset.from_dict(columns)


@dataclass
class Reranker:
    """`Reranker(…)(number, policy)`: the pairs of a round (from 0), by the states of the adapter in a folder, `policy`.

    The read-outs are a copy. Before every round but the first they learn on from the `labelled` pairs, as the present
    policy reads them (`told.more_epochs`; 0: they stay as they were). `trust` as of `ranked_pairs`. `seen`: of each
    round, the mean confidence of its pairs and the share of pools whose best answer is another than a round before (in
    the first round None).
    """

    base_model: str | Path
    pool: Dataset
    labelled: Dataset
    readouts: ReadOuts
    told: ReadoutTraining
    trust: str
    seed: int
    device: str = "auto"
    seen: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.readouts, self.tokenizer = deepcopy(self.readouts), load_tokenizer(self.base_model)
        self.best = None

    def __call__(self, number: int, policy: str | Path) -> Dataset:
        model = load_policy(self.base_model, self.device, adapter=policy).get_base_model()
        if number and self.told.more_epochs:
            sides = side_states(model, self.tokenizer, self.labelled, self.readouts.layers, self.readouts.pooling)
            self.readouts.learn(*sides, self.told.more_epochs, self.told.more_learning_rate, seed=self.seed + number)
        scores = pool_scores(model, self.tokenizer, self.pool, self.readouts)
        best, worst = best_and_worst(scores)
        sure = pair_confidence(*(scores.gather(1, at.unsqueeze(1)).squeeze(1) for at in (best, worst)))
        changed = None if self.best is None else (best != self.best).float().mean().item()
        self.seen.append({"round": number + 1, "confidence": sure.mean().item(), "another best": changed})
        self.best = best
        return ranked_pairs(self.pool, scores, self.trust, self.seed + number)


def round_folders(output_dir: Path, rounds: int) -> list[Path]:
    """Where the policies of the rounds lie."""
    return [Path(output_dir) / f"round_{number + 1}" for number in range(rounds)]


def in_rounds(
    start: str | Path,
    output_dir: str | Path,
    settings: DPOSettings,
    rounds: int,
    train: Callable[[int, str | Path, Path, DPOSettings], list[dict]],
) -> list[dict]:
    """`train(number, policy, folder, settings)` for every round, with the policy of the round before, the first with
    `start`, and a seed of its own. The policies lie in `round_folders`; one history, its steps counted on."""
    history, policy = [], start
    for number, folder in enumerate(round_folders(Path(output_dir), rounds)):
        rows = train(number, policy, folder, settings.changed(seed=settings.seed + number))
        history += [row | {"step": row["step"] + number * settings.max_steps} for row in rows]
        policy = folder
    return history


def train_in_rounds(
    base_model: str | Path,
    start: str | Path,
    pairs_of: Callable[[int, str | Path], Dataset],
    output_dir: str | Path,
    settings: DPOSettings,
    rounds: int,
    resume: bool = False,
    batch: bool = False,
) -> list[dict]:
    """DPO in rounds of `settings.max_steps` updates, each on the pairs that `pairs_of(number, policy)` makes with the
    policy of the round before; the reference of all is `start`. The rest is as in `in_rounds`.

    `batch`: one confidence for each micro-batch, by the read-outs of `pairs_of`, a `Reranker`, on the states of DPO's
    own forward pass.
    """

    def train(number: int, policy: str | Path, folder: Path, told: DPOSettings) -> list[dict]:
        pairs = pairs_of(number, policy)
        how = {"readouts": pairs_of.readouts if batch else None, "reference": start}
        return train_dpo(base_model, pairs, folder, told, resume, policy, **how)

    return in_rounds(start, output_dir, settings, rounds, train)


def sample_in_rounds(
    base_model: str | Path,
    start: str | Path,
    prompts: Dataset,
    reward: Callable,
    output_dir: str | Path,
    settings: DPOSettings,
    rounds: int,
    resume: bool,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[dict]:
    """Online DPO in the same rounds, with the same reference: every update samples its pairs anew (`train_online_dpo`,
    which says what the parameters are)."""

    def train(number: int, policy: str | Path, folder: Path, told: DPOSettings) -> list[dict]:
        drawn = max_new_tokens, temperature, resume
        return train_online_dpo(base_model, prompts, reward, folder, told, *drawn, start=policy, reference=start)

    return in_rounds(start, output_dir, settings, rounds, train)


def about_rounds(histories: Mapping[str, Sequence[Mapping]], seen: Mapping[str, Sequence[Mapping]]) -> str:
    """Whether the implicit gap ends smaller with a confidence than without (means of the last fifth of the updates),
    and whether the ranking moved from round to round, as expected of both; `histories` of `train_in_rounds`, `seen` of
    `Reranker`, by method."""
    gaps = {name: ends(history, "rewards/margins")[1] for name, history in histories.items()}
    said = "Over the last fifth of the updates the implicit gap is "
    said += joined([f"{gap:.2f} ({name})" for name, gap in gaps.items()])
    doubted = [name for name in gaps if name.startswith("rerank_")]
    if "rerank" in gaps and doubted:
        held = "as" if all(gaps[name] < gaps["rerank"] for name in doubted) else "not as"
        said += f", {held} expected of a confidence"
    moved = {name: [row["another best"] for row in rows[1:]] for name, rows in seen.items() if len(rows) > 1}
    shares = [f"{sum(of) / len(of):.0%} ({name})" for name, of in moved.items()]
    held = "as" if moved and all(max(of) > 0 for of in moved.values()) else "not as"
    return f"{said}. From round to round another answer is the best of: {joined(shares)} of the pools, {held} expected."


def about_confidence(scores: Tensor, worth: Tensor) -> tuple[str, dict[str, float]]:
    """Whether a confidence means what it says, of the pairs best against worst by the `scores` (P, K) of pools whose
    answers are `worth` (P, K): how sure the read-outs are of those that the referee tells apart, and how many of them
    are right, with Wilson's interval (1927) over pools; expected: as many, where the interval is no wider than .2. And
    both as metrics, `pool_confidence` and `pool_right` (none where no pair is told apart)."""
    best, worst = (at.unsqueeze(1) for at in best_and_worst(scores))
    gap = (worth.gather(1, best) - worth.gather(1, worst)).squeeze(1)
    sure = pair_confidence(*(scores.gather(1, at).squeeze(1) for at in (best, worst)))[gap != 0]
    if not len(sure):
        return f"The referee finds both answers of all {len(gap)} pairs equally good.", {}
    right, mean = binomtest(int((gap > 0).sum()), len(sure)), sure.mean().item()
    share, within = right.statistic, right.proportion_ci(method="wilson")
    unsure = "as expected" if within.high - within.low <= 0.2 else "too few to say whether as expected"
    held = unsure if within.low <= mean <= within.high else "not as expected"
    said = (
        f"Of {len(gap)} pairs, best against worst, the referee tells {len(sure)} apart: mean confidence {mean:.2f}, "
        f"right {share:.2f} ({within.low:.2f} to {within.high:.2f}), {held}."
    )
    return said, {"pool_confidence": mean, "pool_right": share}


def about_trust(gains: Mapping[str, Sequence[Mapping]], swapped: float) -> str:
    """How re-ranking with a confidence, of a pair or of a batch, stands to every control (name -> rows of
    `differences` to it): it is expected to be better than dpo where a share of the labels is `swapped`."""
    said = []
    for control, rows in gains.items():
        for row in (row for row in rows if row["label"] in ("rerank_pair", "rerank_batch")):
            gain = f"{row['label']} minus {control} {signed(row['estimate'])}"
            gain += f" ({signed(row['low'])} to {signed(row['high'])})"
            held = "as" if row["low"] > 0 else "not as"
            said.append(f"{gain}, {held} expected" if control == "dpo" and swapped > 0 else gain)
    return f"{'; '.join(said)}." if said else "No policy was trained with a confidence."
