"""The TF-IDF rival and the measures it shares with the reward models."""

import numpy as np
import pytest
import torch

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.errors import InputError
from srmir_lib.evaluation import reward_accuracy
from srmir_lib.evaluation.bag_of_words import fit_text_baseline
from srmir_lib.evaluation.reward_accuracy import danger_auroc, danger_of, detection_measures
from srmir_lib.statistics import auroc, frontier, pair_accuracy, paired_auroc_gain, youden_threshold


def labelled(*rows) -> list[dict]:
    return [{"prompt": prompt, "completion": text, "unsafe": unsafe} for prompt, text, unsafe in rows]


TRAIN = labelled(
    ("how", "sorry I cannot help", 0),
    ("why", "sorry that is wrong", 0),
    ("how", "I cannot do that", 0),
    ("how", "sure here is how", 1),
    ("why", "sure first take this", 1),
)
HELD = labelled(("how", "sorry no", 0), ("why", "sure yes", 1), ("how", "I cannot", 0))


def test_auroc_by_counting_pairs():
    danger, unsafe = [3.0, 1.0, 2.0, 2.0, 0.5], [1, 0, 1, 0, 0]
    wins = [(p > n) + 0.5 * (p == n) for p in (3.0, 2.0) for n in (1.0, 2.0, 0.5)]
    assert auroc(danger, unsafe) == pytest.approx(sum(wins) / 6)
    with pytest.raises(InputError, match="all are the same"):
        auroc([1.0, 2.0], [1, 1])
    with pytest.raises(InputError, match="row 1 is not finite"):
        auroc([1.0, float("nan")], [0, 1])


def test_pair_accuracy_counts_ties_half():
    assert pair_accuracy([1, 2, 3, 4], [0, 2, 4, 3]) == pytest.approx(2.5 / 4)


def test_youden_threshold_separates_as_well_as_any():
    danger, unsafe = [0.1, 0.4, 0.35, 0.8, 0.9], [0, 0, 1, 1, 1]
    threshold = youden_threshold(danger, unsafe)
    flagged = np.array(danger) >= threshold
    gain = flagged[np.array(unsafe) == 1].mean() - flagged[np.array(unsafe) == 0].mean()
    tries = [(np.array(danger) >= t) for t in danger]
    assert gain == pytest.approx(max(f[np.array(unsafe) == 1].mean() - f[np.array(unsafe) == 0].mean() for f in tries))


def test_a_frontier_by_counting_at_every_threshold():
    harmful, harmless = [3.0, 1.0, 2.0], [2.0, -1.0]
    refused, answered = frontier(harmful, harmless)
    expected = [
        (sum(score > at for score in harmless) / 2, sum(score <= at for score in harmful) / 3)
        for at in (-np.inf, -1.0, 1.0, 2.0, 3.0)
    ]
    assert np.column_stack([refused, answered]) == pytest.approx(np.array(expected))
    random = np.random.default_rng(0)
    harmful, harmless = random.normal(1, 1, 60), random.normal(0, 1, 40)
    refused, answered = frontier(harmful, harmless)
    below = np.trapezoid(answered[::-1], refused[::-1])
    both = np.concatenate([harmful, harmless])
    assert 1 - below == pytest.approx(auroc(both, [1] * 60 + [0] * 40)), "what lies above the curve"


def test_gain_over_a_rival_redraws_groups():
    random = np.random.default_rng(0)
    groups, unsafe = np.repeat(np.arange(12), 10), np.tile([0, 1], 60)
    good, poor = unsafe + random.normal(0, 0.5, 120), unsafe + random.normal(0, 3.0, 120)
    gain = paired_auroc_gain(good, poor, unsafe, groups, resamples=200)
    assert gain.estimate == pytest.approx(auroc(good, unsafe) - auroc(poor, unsafe))
    assert 0 < gain.low < gain.estimate < gain.high
    same = paired_auroc_gain(good, good, unsafe, groups, resamples=50)
    assert same == (0.0, 0.0, 0.0)


def test_a_draw_of_a_bootstrap_is_the_area_of_its_rows():
    random = np.random.default_rng(1)
    unsafe, groups = random.integers(0, 2, 40), np.arange(40) % 12
    one, other = random.normal(size=(2, 40)).round(1)
    random, gains = np.random.default_rng(7), []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in random.integers(12, size=12)])
        gains.append(auroc(one[rows], unsafe[rows]) - auroc(other[rows], unsafe[rows]))
    found = paired_auroc_gain(one, other, unsafe, groups, resamples=200, seed=7)
    assert (found.low, found.high) == pytest.approx(np.quantile(gains, [0.025, 0.975]))


def test_routed_danger_asks_the_model_of_the_category():
    class Models:
        categories = ["insult", "privacy"]

        def score(self, prompts, completions):
            return torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])

    rows = {"prompt": "abc", "completion": "abc", "category": ["privacy", "insult", "unknown"]}
    assert danger_of(Models(), rows).tolist() == [-2.0, -3.0, -6.0]
    assert danger_auroc(Models(), rows | {"unsafe": [0, 1, 0]}) == pytest.approx(1 / 2), "-3 is above -6, below -2"


def test_measures_by_hand_with_the_threshold_of_validation(monkeypatch):
    monkeypatch.setattr(reward_accuracy, "FEW", 1)
    labelled = {
        "validation": {"unsafe": [0, 1, 0, 1]},
        "test": {"unsafe": [0, 0, 1, 1], "category": ["insult", "privacy", "insult", "privacy"]},
        "diasafety": {"unsafe": [1, 0]},
        "overrefusal": {"unsafe": [0, 0, 0], "kind": ["answered", "answered", "refused"]},
    }
    danger = {  # any threshold in (1, 2] separates validation; the smallest danger that is flagged there is 2
        "validation": np.array([0.0, 2.0, 1.0, 3.0]),
        "test": np.array([2.5, 0.0, 2.0, 1.9]),
        "diasafety": np.array([1.0, 5.0]),
        "overrefusal": np.array([9.0, 0.0, 1.0]),
    }
    assert detection_measures(danger, labelled) == {
        "auroc_validation": 1.0,
        "auroc_test": 0.5,
        "hits_test": 0.5,
        "false_alarms_test": 0.5,
        "auroc_diasafety": 0.0,
        "auroc_test_insult": 0.0,
        "auroc_test_privacy": 1.0,
        "false_alarms_benign_answered": 0.5,
        "false_alarms_benign_refused": 0.0,
    }


def test_labelled_responses_teach_which_words_are_safe():
    baseline = fit_text_baseline(TRAIN, [], HELD, [])
    safe, unsafe = baseline.score(["how", "how"], ["sorry cannot", "sure here is"])
    assert safe > unsafe
    assert baseline.choice["validation"] == 1.0
    conversations = baseline.score([user_message("how")] * 2, [assistant_message("sorry cannot"), "sure here is"])
    assert conversations == pytest.approx([safe, unsafe])


def test_pairs_alone_teach_a_direction():
    words = [("kind", "cruel"), ("kind calm", "cruel loud"), ("calm", "loud"), ("kind", "loud")]
    pairs = [{"prompt": user_message("p"), "chosen": good, "rejected": bad} for good, bad in words]
    baseline = fit_text_baseline([], pairs, [], pairs, reads=["response"])
    kind, cruel = baseline.score(["p", "p"], ["kind", "cruel"])
    assert kind > 0 > cruel
    assert baseline.choice["validation"] == 1.0


def test_the_rival_on_pairs_is_tuned_on_validation_pairs():
    """Only the order of two words tells the answers apart, so single words tie and pairs of words are right."""
    orders = [("no yes", "yes no"), ("no yes please", "yes no please"), ("so no yes", "so yes no")]
    pairs = [{"prompt": "p", "chosen": good, "rejected": bad} for good, bad in orders]
    baseline = fit_text_baseline([], pairs, [], pairs, reads=["response"])
    assert baseline.choice == {"reads": "response", "ngrams": [1, 2], "penalty": 0.1, "validation": 1.0}
    singles = fit_text_baseline([], pairs, [], pairs, reads=["response"], ngrams=[(1, 1)])
    assert singles.choice["validation"] == 0.5, "a tie counts one half"
    mirrored = [{"prompt": "p", "chosen": bad, "rejected": good} for good, bad in orders]
    contrary = fit_text_baseline([], pairs, [], mirrored, reads=["response"])
    assert contrary.choice["ngrams"] == [1, 1], "validation pairs, not the training pairs, decide"


def test_same_evidence_with_and_without_pairs_differs():
    pairs = [{"prompt": "how", "chosen": "here is", "rejected": "sorry"}] * 20
    alone, both = fit_text_baseline(TRAIN, [], HELD, []), fit_text_baseline(TRAIN, pairs, HELD, [], pair_weight=5.0)
    assert both.score(["how"], ["sorry"])[0] < alone.score(["how"], ["sorry"])[0]


def test_bad_evidence_is_one_clear_line():
    with pytest.raises(InputError, match="all safe or all unsafe"):
        fit_text_baseline(TRAIN[:3], [], HELD, [])
    with pytest.raises(InputError, match="validation rows of the same kind"):
        fit_text_baseline(TRAIN, [], [], [])
    with pytest.raises(InputError, match="reads: 'prompt'"):
        fit_text_baseline(TRAIN, [], HELD, [], reads=["prompt"])
