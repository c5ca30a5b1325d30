"""How often a reward model prefers the better answer, what it picks among many, and how far a bag of words gets."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from srmir_lib.conversations import text_of
from srmir_lib.data.pairs import SAID
from srmir_lib.evaluation.bag_of_words import TextBaseline, fit_text_baseline
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.srmir import categorized_reward
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.calibration import Calibration, lengths_of, pay_of_length
from srmir_lib.reward_models.shadow import score_sets
from srmir_lib.statistics import (
    Interval,
    auroc,
    best_of_n_rows,
    bootstrap_interval,
    is_correct,
    paired_auroc_gain,
    rank_correlation,
    youden_threshold,
)
from srmir_lib.taxonomy import ordered

FEW = 10
"""Answers of either kind, at least, for a category's own AUROC."""

WAYS = {
    "seven": "seven, routed",
    "single": "one model",
    "words_both": "counting words",
    "words_tuned": "counting words",
    "seven_linear": "seven, summed",
    "seven_gold": "seven, true category",
    "cross": "cross-trained, routed",
    "cross_linear": "cross-trained, summed",
    "words_response": "counting the answer's words",
}
"""Ways of asking the reward models of 02 and their rivals, by name in metrics: what figures call them."""


MAIN_WAYS = tuple(dict.fromkeys(list(WAYS.values())[:4]))


def routed_danger(scores: Tensor, labels: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Minus the raw score of each row's routed model: scores (N, K), labels (N,) -> (N,); of an unknown category the
    mean of all models."""
    return -categorized_reward(scores, category_index(labels, categories)).numpy()


def danger_of(models, rows) -> np.ndarray:
    """`routed_danger` of responses that a set of models scores first."""
    return routed_danger(models.score(rows["prompt"], rows["completion"]), rows["category"], models.categories)


def danger_auroc(models, labelled) -> float:
    """How often an unsafe response is in more `routed_danger` than a safe one, in [0, 1]."""
    return auroc(danger_of(models, labelled), labelled["unsafe"])


def detection_measures(danger: Mapping[str, np.ndarray], labelled: Mapping) -> dict[str, float]:
    """One method's measures, by name, on the splits of `labelled`; `danger` (N,) per split.

    The alarm's threshold is chosen on the validation prompts and nowhere else. In domain: AUROC, hits and false alarms
    on the test split, and its AUROC for every category with `FEW` answers of either kind. Out of domain: AUROC on the
    other splits that have both kinds, and false alarms on benign prompts, which one model answered and one refused.
    """
    unsafe = {name: np.asarray(rows["unsafe"]).astype(bool) for name, rows in labelled.items()}
    threshold = youden_threshold(danger["validation"], unsafe["validation"])
    alarm = {name: np.asarray(values) >= threshold for name, values in danger.items()}
    kind = np.asarray(labelled["overrefusal"]["kind"])
    found = {
        f"auroc_{name}": auroc(values, unsafe[name]) for name, values in danger.items() if has_both(labelled[name])
    }
    category = np.asarray(labelled["test"]["category"])
    for name in ordered(category):
        own = category == name
        if min(unsafe["test"][own].sum(), (~unsafe["test"][own]).sum()) >= FEW:
            found[f"auroc_test_{name}"] = auroc(np.asarray(danger["test"])[own], unsafe["test"][own])
    return found | {
        "hits_test": float(alarm["test"][unsafe["test"]].mean()),
        "false_alarms_test": float(alarm["test"][~unsafe["test"]].mean()),
        "false_alarms_benign_answered": float(alarm["overrefusal"][kind == "answered"].mean()),
        "false_alarms_benign_refused": float(alarm["overrefusal"][kind == "refused"].mean()),
    }


def has_both(rows) -> bool:
    """Whether there are safe and unsafe answers among the rows."""
    return 0 < sum(rows["unsafe"]) < len(rows["unsafe"])


def reward_gaps(models, pairs) -> Tensor:
    r"""$d_j=r_j(x,y^+)-r_j(x,y^-)$ of every model: rows with prompt, chosen, rejected -> (N, K), raw score units."""
    scores, count = models.score(*_both(pairs)), len(pairs["prompt"])
    return scores[:count] - scores[count:]


def scores_of_sets(sets: Mapping, pairs) -> dict[str, Tensor]:
    """Scores of both answers by several sets of reward models, name -> (2, N, K), the chosen ones first; sets on one
    trunk read the pairs once."""
    return {name: scores.unflatten(0, (2, -1)) for name, scores in score_sets(sets, *_both(pairs)).items()}


def gaps_of_sets(sets: Mapping, pairs) -> dict[str, Tensor]:
    """`reward_gaps` of several sets of reward models, name -> (N, K); those on one trunk read the pairs once."""
    return {name: chosen - rejected for name, (chosen, rejected) in scores_of_sets(sets, pairs).items()}


def _both(pairs) -> tuple[list, list]:
    """Prompts and answers of all chosen sides, then of all rejected ones: a trunk reads each prompt once for both."""
    return [*pairs["prompt"], *pairs["prompt"]], [*pairs["chosen"], *pairs["rejected"]]


def gaps_by_label(gaps: Tensor, labels: Sequence[str], categories: Sequence[str]) -> Tensor:
    """Each pair's reward gap by the model of its label: gaps (N, K), labels (N,) -> (N,); without one the mean of
    all."""
    return categorized_reward(gaps, category_index(labels, categories))


def accuracy_of_own_kind(raw: Mapping[str, Tensor], pairs, categories: Sequence[str], seed: int = 0) -> list[dict]:
    """Pair accuracy by set on other prompts' pairs of the kind that was trained on, each by the model of its label, or
    by the mean of all where it has none: rows as of `accuracy_rows`, with the number of `pairs`.

    `raw`: set -> scores (2N, K) of the `calibration_set` of `pairs`, the N rejected answers first, whose models are the
    `categories`, or one.
    """
    labels = [label for label, origin in zip(pairs["category"], pairs["origin"], strict=True) if origin in SAID]
    found = []
    for name, scores in raw.items():
        rejected, chosen = scores.unflatten(0, (2, -1))
        gaps = chosen - rejected
        gaps = gaps[:, 0] if scores.shape[1] == 1 else gaps_by_label(gaps, labels, categories)
        interval = bootstrap_interval(is_correct(gaps), seed=seed)._asdict()
        found.append({"label": name, "group": "held-out", "pairs": len(labels)} | interval)
    return found


def accuracy_matrix(gaps: Tensor, labels: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Pair accuracy of model i on pairs labelled category j: gaps (N, K), labels (N,) -> (K, C); NaN without pairs."""
    right, labels = is_correct(gaps), np.asarray(labels)
    nothing = np.full(right.shape[1], np.nan)
    own = [right[labels == name] for name in categories]
    return np.stack([rows.mean(axis=0) if len(rows) else nothing for rows in own], axis=1)


def own_and_others(matrix: np.ndarray) -> dict[str, float]:
    """Means of an accuracy matrix (R, K), pairs without a row left out: of models on their `own_category`, on
    `other_categories` (if K > 1), and, if R > K, of the `last_row`."""
    own, seven = np.eye(matrix.shape[1], dtype=bool), matrix[: matrix.shape[1]]
    parts = {"own_category": seven[own]} | ({"other_categories": seven[~own]} if len(own) > 1 else {})
    parts |= {"last_row": matrix[-1]} if len(matrix) > len(seven) else {}
    return {name: float(np.nanmean(part)) for name, part in parts.items()}


def at_home(gaps: Tensor, labels: Sequence[str], categories: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """How often a pair is ranked rightly by the model of its category (`home`), by the others on average (`elsewhere`),
    and the difference (`gain`): gaps (N, K) of K > 1 models, labels (N,) -> means over pairs that have a model."""
    right, own = is_correct(gaps), category_index(labels, categories).numpy()
    right, own = right[own >= 0], own[own >= 0]
    home = right[np.arange(len(own)), own]
    elsewhere = (right.sum(axis=1) - home) / (right.shape[1] - 1)
    parts = {"home": home, "elsewhere": elsewhere, "gain": home - elsewhere}
    return {name: bootstrap_interval(values, seed=seed) for name, values in parts.items()}


def probes_and_rivals(gaps: Tensor, categories: Sequence[str], rivals, pairs, seed: int = 0) -> list[dict]:
    """Pair accuracy of probes and of the models `rivals` on the pairs of their category, and the difference with its
    interval: a row a category of `rivals` that has pairs.

    `gaps` (N, K): reward gaps of the probes of `categories` on `pairs` (a `Dataset`).
    """
    rows, labels = [], list(pairs["category"])
    for name in [name for name in rivals.categories if name in labels]:
        own = [at for at, label in enumerate(labels) if label == name]
        chosen, rejected = rivals.score(*_both(pairs.select(own)), [name] * 2 * len(own)).unflatten(0, (2, -1))
        probe, rival = is_correct(gaps[own, list(categories).index(name)]), is_correct(chosen - rejected)
        row = {
            "label": "probe_minus_lora",
            "group": name,
            "pairs": len(own),
            "probe": float(probe.mean()),
            "LoRA": float(rival.mean()),
        }
        rows.append(row | bootstrap_interval(probe - rival, seed=seed)._asdict())
    return rows


def category_index(names: Sequence[str], categories: Sequence[str]) -> Tensor:
    """Which model answers for each row, (N,) long; -1 for a name without a model: there the mean of all answers."""
    index = {name: j for j, name in enumerate(categories)}
    return torch.tensor([index.get(name, -1) for name in names], dtype=torch.long)


def scores_by_label(scores: Tensor, labels: Sequence[str], categories: Sequence[str]) -> dict[str, np.ndarray]:
    """What each model scores the pairs of its own category: (2, N, K) as of `scores_of_sets`, labels (N,) -> category
    -> (2, n), the chosen answers first; a category without pairs is left out."""
    labels = np.array(labels)
    own = {name: scores[:, labels == name, at].numpy() for at, name in enumerate(categories)}
    return {name: part for name, part in own.items() if part.size}


def auroc_within(own: Mapping[str, np.ndarray]) -> float:
    """How often a better answer outscores a worse one to any prompt of its category: a mean over the categories of
    `scores_by_label`, in [0, 1]."""
    return np.mean([auroc(-part.ravel(), np.arange(part.size) >= part.size // 2) for part in own.values()])


def accuracy_rows(gaps: Mapping[str, Tensor], levels: Sequence[str], seed: int = 0) -> list[dict]:
    """Pair accuracy of every method on every difficulty: rows with label, group, estimate, low, high (95 % bootstrap).

    `gaps`: method -> reward gaps (N,) on the same pairs, `levels` (N,) their difficulty.
    """
    return [row for name, gap in gaps.items() for row in _level_rows(name, is_correct(gap), levels, seed)]


def difference_rows(treatment: Tensor, control: Tensor, levels: Sequence[str], seed: int = 0) -> list[dict]:
    """Accuracy of one method minus that of another on the same pairs, per difficulty, as rows like `accuracy_rows`."""
    return _level_rows("difference", is_correct(treatment) - is_correct(control), levels, seed)


def _level_rows(label: str, values: np.ndarray, levels: Sequence[str], seed: int) -> list[dict]:
    """Means with intervals of `values` (N,), a row for each of the `levels` (N,)."""
    levels = np.asarray(levels)
    found = {level: bootstrap_interval(values[levels == level], seed=seed) for level in sorted(set(levels.tolist()))}
    return [{"label": label, "group": level, **interval._asdict()} for level, interval in found.items()]


def as_metrics(rows: Sequence[Mapping]) -> dict[str, float]:
    """Rows -> `pair_accuracy_<group>_<label>` with its `_low` and `_high`, for metrics.json."""
    parts = {"estimate": "", "low": "_low", "high": "_high"}
    return {f"pair_accuracy_{row['group']}_{row['label']}{end}": row[key] for row in rows for key, end in parts.items()}


def pay_for_length(models, reference: tuple[Sequence, Sequence], pairs) -> dict[str, dict[str, float]]:
    """What a set's gaps owe to length: a row for calibration on the `reference` (prompts, answers), one for that by
    length. accuracy on `pairs`, each by the model of its label; rank correlation of gap and difference in characters.
    """
    raw, gaps, found = models.score(*reference), reward_gaps(models, pairs), {}
    paid, chosen, rejected = pay_of_length(raw, reference[1]), pairs["chosen"], pairs["rejected"]
    longer = lengths_of(chosen) - lengths_of(rejected)
    rest = raw.double() - paid(reference[1]), gaps - (paid(chosen) - paid(rejected)).to(gaps)
    for name, (scores, differences) in {"calibrated": (raw, gaps), "calibrated for length": rest}.items():
        scaled = Calibration.fit(scores, models.categories).scale_gaps(differences)
        own = gaps_by_label(scaled, pairs["category"], models.categories).numpy()
        found[name] = {"accuracy": float(is_correct(own).mean()), "follows length": rank_correlation(own, longer)}
    return found


def word_rivals(preferences: Mapping, tuned: bool = False) -> dict[str, TextBaseline]:
    """Bags of words fitted on the pairs of `train` and chosen by their accuracy on those of `validation`, by name.

    `words_response` counts single words of the answers, `words_both` those and their products with the prompt's; the
    penalty alone is chosen. `tuned`: `words_tuned` instead, of which all is chosen.
    """
    known = [], preferences["train"], [], preferences["validation"]
    if tuned:
        return {"words_tuned": fit_text_baseline(*known)}
    reads = {"words_response": "response", "words_both": "products"}
    return {name: fit_text_baseline(*known, reads=[what], ngrams=[(1, 1)]) for name, what in reads.items()}


def best_of_n_by_sets(
    sets: Mapping, trunk: Trunk, router, prompts: Sequence, referee, count: int, max_new_tokens: int, seed: int = 0
) -> list[dict]:
    """What sets of reward models pick among n answers of the base model, for n = 1, 2, 4, … up to `count` of them.

    Every prompt is answered `count` times; the model of its route scores the answers, in standard deviations, and
    `referee` says how good they are in truth. Rows as of `best_of_n_rows`.
    """
    asked = [prompt for prompt in prompts for _ in range(count)]
    said = trunk.generate(asked, max_new_tokens, seed=seed)
    truth = torch.tensor([verdict.goodness for verdict in referee(list(map(text_of, asked)), said)])
    proxies = {}
    for name, models in sets.items():
        reward = RewardFunction(models, "categorized", router=router)
        proxies[name] = torch.tensor(reward(asked, said)).view(-1, count).numpy()
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= count]
    return best_of_n_rows(proxies, truth.view(-1, count).double().numpy(), sizes)


def sizes(labelled: Mapping) -> pd.DataFrame:
    """How many answers each split of `labelled` has, and how many of them people called unsafe."""
    counts = {name: {"answers": len(rows), "unsafe": sum(rows["unsafe"])} for name, rows in labelled.items()}
    return pd.DataFrame(counts).rename_axis(columns="labelled")


def compare_with_words(
    models,
    labelled: Mapping,
    pairs: Mapping,
    pair_weight: float,
    seed: int = 0,
    others: Mapping[str, Mapping] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, Interval], dict[str, dict]]:
    """Reward models next to two word counters with the same evidence: measures by method, gains, the counters' choices.

    `labelled` as of `labelled_sets.labelled_answers`, `pairs` with train and test. `words` sees the labelled responses
    of the train split, `words_and_pairs` the pairs as well; both have the best AUROC of all candidates on validation.
    `others`: more methods, each with its danger (N,) per split; "models" among them is what the models gave already.
    The measures are `detection_measures`; the gains are in AUROC, models (or others) minus words, on the test split and
    on what lies out of domain, with intervals over questions (contexts).
    """
    held = {name: rows for name, rows in labelled.items() if name != "train"}
    danger, chosen = dict(others or {}), {}
    if "models" not in danger:
        danger = {"models": {name: danger_of(models, rows) for name, rows in held.items()}} | danger
    for name, used in (("words", []), ("words_and_pairs", pairs["train"])):
        words = fit_text_baseline(labelled["train"], used, labelled["validation"], [], pair_weight)
        chosen[name] = words.choice
        danger[name] = {split: -words.score(rows["prompt"], rows["completion"]) for split, rows in held.items()}
    table = {name: detection_measures(found, held) for name, found in danger.items()}
    asked = [split for split in held if split != "validation" and has_both(held[split])]
    gains = {
        f"{split}_minus_{rival}" if method == "models" else f"{split}_{method}_minus_{rival}": paired_auroc_gain(
            danger[method][split], danger[rival][split], held[split]["unsafe"], held[split]["group"], seed=seed
        )
        for method in dict.fromkeys(("models", *(others or {})))
        for split in asked
        for rival in ("words", "words_and_pairs")
    }
    return table, gains, chosen
