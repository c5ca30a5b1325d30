"""How well do scores tell unsafe responses from safe ones? Ranking measures, thresholds, and their uncertainty."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_curve

from srmir_lib.artifacts import InputError
from srmir_lib.evaluation import Interval
from srmir_lib.pair_accuracy import category_index
from srmir_lib.rewards import categorized_reward


def auroc(danger, unsafe) -> float:
    """P(an unsafe response has a higher `danger` than a safe one), ties counted half. (N,), (N,) in {0, 1} -> [0, 1].

    `danger` is minus a reward model's score. Both kinds must occur.
    """
    danger, unsafe = np.asarray(danger, dtype=float), np.asarray(unsafe).astype(bool)
    if unsafe.all() or not unsafe.any():
        raise InputError(f"auroc: needs safe and unsafe responses; of {len(unsafe)} all are the same")
    if not np.isfinite(danger).all():
        raise InputError(f"auroc: the score of row {int(np.flatnonzero(~np.isfinite(danger))[0])} is not finite")
    return _auroc(danger, unsafe)


def _auroc(danger: np.ndarray, unsafe: np.ndarray) -> float:
    """The rank-sum (Mann-Whitney) form, for the many draws of a bootstrap."""
    positives = int(unsafe.sum())
    ranks = rankdata(danger)[unsafe].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(unsafe) - positives)))


def pair_accuracy(chosen_scores, rejected_scores) -> float:
    """Share of pairs whose chosen response scores higher, ties counted half. (N,), (N,) -> [0, 1]."""
    gap = np.asarray(chosen_scores, dtype=float) - np.asarray(rejected_scores, dtype=float)
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def youden_threshold(danger, unsafe) -> float:
    """The threshold on `danger` with the largest (hit rate - false-alarm rate), to be chosen on validation rows.

    A response is flagged when its danger is at or above the threshold. Youden 1950.
    """
    auroc(danger, unsafe)  # the same demands on the input
    false_alarms, hits, thresholds = roc_curve(np.asarray(unsafe).astype(bool), np.asarray(danger, dtype=float))
    return float(thresholds[int(np.argmax(hits - false_alarms))])


def paired_auroc_gain(
    danger, rival_danger, unsafe, groups: Sequence, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """AUROC minus a rival's on the same rows, with a bootstrap interval that redraws whole groups (questions, say).

    Answers to one question are alike, so redrawing rows would promise more certainty than there is. Draws without both
    kinds of response are drawn again.
    """
    gain = auroc(danger, unsafe) - auroc(rival_danger, unsafe)
    danger, rival_danger = (np.asarray(part, dtype=float) for part in (danger, rival_danger))
    unsafe = np.asarray(unsafe).astype(bool)
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(of_row == at) for at in range(len(names))]
    random, gains = np.random.default_rng(seed), []
    while len(gains) < resamples:
        rows = np.concatenate([members[at] for at in random.integers(len(names), size=len(names))])
        if 0 < unsafe[rows].sum() < len(rows):
            gains.append(_auroc(danger[rows], unsafe[rows]) - _auroc(rival_danger[rows], unsafe[rows]))
    low, high = np.quantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(gain, float(low), float(high))


def routed_danger(models, rows) -> np.ndarray:
    """Minus the raw score of each row's routed model (N,); an unknown category gets the mean of all models."""
    scores = models.score(rows["prompt"], rows["completion"])
    return -categorized_reward(scores, category_index(rows["category"], models.categories)).numpy()


def detection_measures(danger: Mapping[str, np.ndarray], labelled: Mapping) -> dict[str, float]:
    """One method's measures, by name, on the splits of `realdata.labelled_responses`; `danger` (N,) per split.

    The alarm's threshold is chosen on the validation questions and nowhere else. In domain: AUROC, hits and false
    alarms on held-out questions. Out of domain: AUROC on diasafety, and false alarms on benign prompts, which one
    model answered and one refused.
    """
    unsafe = {name: np.asarray(rows["unsafe"]).astype(bool) for name, rows in labelled.items()}
    threshold = youden_threshold(danger["validation"], unsafe["validation"])
    alarm = {name: np.asarray(values) >= threshold for name, values in danger.items()}
    kind = np.asarray(labelled["overrefusal"]["kind"])
    return {
        "auroc_validation": auroc(danger["validation"], unsafe["validation"]),
        "auroc_test": auroc(danger["test"], unsafe["test"]),
        "hits_test": float(alarm["test"][unsafe["test"]].mean()),
        "false_alarms_test": float(alarm["test"][~unsafe["test"]].mean()),
        "auroc_diasafety": auroc(danger["diasafety"], unsafe["diasafety"]),
        "false_alarms_benign_answered": float(alarm["overrefusal"][kind == "answered"].mean()),
        "false_alarms_benign_refused": float(alarm["overrefusal"][kind == "refused"].mean()),
    }
