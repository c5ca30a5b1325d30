"""Pair accuracy by hand, and a bag of words that solves what words can solve and nothing else."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from srmir_lib.errors import InputError
from srmir_lib.evaluation.bag_of_words import fit_text_baseline
from srmir_lib.evaluation.measures import Verdict
from srmir_lib.evaluation.reward_accuracy import (
    accuracy_matrix,
    accuracy_of_own_kind,
    accuracy_rows,
    as_metrics,
    at_home,
    auroc_within,
    best_of_n_by_sets,
    category_index,
    difference_rows,
    gaps_by_label,
    gaps_of_sets,
    own_and_others,
    pay_for_length,
    probes_and_rivals,
    reward_gaps,
    scores_by_label,
    word_rivals,
)
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.statistics import is_correct


def test_accuracy_by_hand():
    gaps = torch.tensor([[1.0, -1.0], [-2.0, 3.0], [0.0, 0.5]])
    assert is_correct(gaps).tolist() == [[1, 0], [0, 1], [0.5, 1]]
    matrix = accuracy_matrix(gaps, ["crimes", "crimes", "privacy"], ["crimes", "privacy", "ethics"])
    assert matrix[:, :2].tolist() == [[0.5, 0.5], [0.5, 1.0]]
    assert np.isnan(matrix[:, 2]).all(), "no pair of ethics"


def test_right_at_home_and_elsewhere_by_hand():
    gaps = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [-1.0, 2.0, 2.0], [5.0, 5.0, 5.0]])
    home, elsewhere, gain = at_home(
        gaps, ["crimes", "privacy", "crimes", "unknown"], ["crimes", "privacy", "ethics"]
    ).values()
    assert (home.estimate, elsewhere.estimate) == pytest.approx((2 / 3, (0.5 + 0.5 + 1.0) / 3)), "of three pairs"
    assert gain.estimate == pytest.approx((0.5 + 0.5 - 1.0) / 3) and gain.low < 0 < gain.high
    always = at_home(torch.tensor([[1.0, -1.0]] * 5), ["crimes"] * 5, ["crimes", "privacy"])
    assert always == {"home": (1, 1, 1), "elsewhere": (0, 0, 0), "gain": (1, 1, 1)}


class Longer:
    """A rival for one category, which holds the longer answer for the better one."""

    categories = ["crimes", "privacy"]

    def score(self, prompts, completions, categories):
        assert set(categories) == {"crimes"}, "of other categories there are no pairs"
        return torch.tensor([float(len(text)) for text in completions])


def test_a_probe_and_its_rival_by_hand():
    sides = {"chosen": ["aaa", "a", "aa", "aaaa"], "rejected": ["a", "aaa", "aa", "a"]}
    pairs = Dataset.from_dict({"prompt": ["p"] * 4, "category": ["crimes", "crimes", "crimes", "ethics"]} | sides)
    gaps = torch.tensor([[0.0, 1.0], [9.0, 2.0], [9.0, 3.0], [9.0, -1.0]])  # of models of ethics and crimes
    (row,) = probes_and_rivals(gaps, ["ethics", "crimes"], Longer(), pairs)
    assert (row["group"], row["pairs"], row["probe"], row["LoRA"]) == ("crimes", 3, 1.0, 0.5)
    assert row["estimate"] == pytest.approx((0 + 1 + 0.5) / 3) and row["low"] <= row["estimate"] <= row["high"]


def test_means_of_a_matrix_at_home_and_elsewhere():
    matrix = np.array([[1.0, 0.5], [np.nan, 0.5], [0.9, 0.7]])
    expected = {"own_category": 0.75, "other_categories": 0.5, "last_row": 0.8}
    assert own_and_others(matrix) == pytest.approx(expected)
    assert own_and_others(np.array([[0.6]])) == {"own_category": 0.6}


class PaidByLength:
    """One model: a point a character, and one more for an answer that begins with n."""

    categories = ["insult"]

    def score(self, prompts, answers):
        return torch.tensor([[len(text) + float(text.startswith("n"))] for text in answers])


def test_what_a_model_pays_for_length_is_taken_off():
    reference = ["p"] * 40, [("n" if i % 2 else "y") * (1 + i // 2) for i in range(40)]
    shorter = {"prompt": ["p"] * 3, "chosen": ["n", "nn", "nnn"], "rejected": ["y" * 9, "y" * 11, "y" * 13]}
    found = pay_for_length(PaidByLength(), reference, shorter | {"category": ["insult"] * 3})
    assert found["calibrated"] == {"accuracy": 0.0, "follows length": pytest.approx(1.0)}
    assert found["calibrated for length"]["accuracy"] == 1.0, "the better answers are the shorter ones"


def test_names_become_columns():
    assert category_index(["b", "a", "unknown"], ["a", "b"]).tolist() == [1, 0, -1]


def test_gaps_and_scores_of_each_pair_by_the_model_of_its_label():
    labels, categories = ["b", "a", "b", "unknown"], ["a", "b", "c"]
    gaps = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 6]])
    assert gaps_by_label(gaps, labels, categories).tolist() == [2.0, 4.0, 8.0, 3.0], "unknown: the mean of all three"
    own = scores_by_label(torch.stack([gaps, -gaps]), labels, categories)
    assert {name: part.tolist() for name, part in own.items()} == {"a": [[4], [-4]], "b": [[2, 8], [-2, -8]]}


def test_auroc_within_compares_answers_to_different_prompts():
    """Of the better answers of a (3 and 1) and the worse ones (2 and 0) three of four comparisons come out right."""
    own = {"a": np.array([[3.0, 1.0], [2.0, 0.0]]), "b": np.array([[1.0], [0.0]])}
    assert auroc_within(own) == pytest.approx((3 / 4 + 1) / 2)


def test_reward_gaps_are_chosen_minus_rejected():
    class Lengths:
        def score(self, prompts, completions, columns=None):
            return torch.tensor([[len(c), len(p)] for p, c in zip(prompts, completions, strict=True)]).float()

    def models() -> ShadowRewardModels:
        return ShadowRewardModels(Lengths(), ["answer", "question"], "by hand")

    pairs = {"prompt": ["ab", "c"], "chosen": ["xyz", "x"], "rejected": ["x", "xy"]}
    assert reward_gaps(models(), pairs).tolist() == [[2, 0], [-1, 0]]
    by_set = gaps_of_sets({"one": models(), "other": models()}, pairs)
    assert {name: gaps.tolist() for name, gaps in by_set.items()} == dict.fromkeys(by_set, [[2, 0], [-1, 0]])


def test_rows_and_metrics_by_hand():
    gaps = {"seven": torch.tensor([1.0, 1.0, -1.0, 1.0]), "single": torch.tensor([1.0, -1.0, 0.0, 1.0])}
    levels = ["easy", "subtle", "subtle", "easy"]
    rows = accuracy_rows(gaps, levels)
    assert [(row["label"], row["group"], row["estimate"]) for row in rows] == [
        ("seven", "easy", 1.0),
        ("seven", "subtle", 0.5),
        ("single", "easy", 1.0),
        ("single", "subtle", 0.25),
    ]
    assert all(row["low"] <= row["estimate"] <= row["high"] for row in rows)
    difference = difference_rows(gaps["seven"], gaps["single"], levels)
    assert [(row["group"], row["estimate"]) for row in difference] == [("easy", 0.0), ("subtle", 0.25)]
    metrics = as_metrics(rows)
    assert metrics["pair_accuracy_subtle_single"] == 0.25 and metrics["pair_accuracy_easy_seven_low"] == 1.0


def pairs(rule, rows: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(100, (rows, 3), generator=generator).tolist()
    table = []
    for i, (a, b, c) in enumerate(noise):
        good, bad = rule(i)
        table.append({"prompt": f"ask{i % 2} n{a}", "chosen": f"{good} w{b}", "rejected": f"{bad} w{c}"})
    return Dataset.from_list(table)


def accuracies(rule, tuned: bool = False) -> dict[str, float]:
    rivals = word_rivals({"train": pairs(rule, 200, 0), "validation": pairs(rule, 100, 1)}, tuned)
    test = pairs(rule, 100, 2)
    return {name: is_correct(rival.gaps(test)).mean() for name, rival in rivals.items()}


def test_a_telling_word_is_found():
    assert accuracies(lambda i: ("no", "yes"))["words_response"] > 0.97
    tuned = accuracies(lambda i: ("no", "yes"), tuned=True)
    assert list(tuned) == ["words_tuned"] and tuned["words_tuned"] > 0.97


def test_a_word_whose_meaning_depends_on_the_prompt_needs_both():
    def rule(i):
        return ("no", "yes") if i % 2 else ("yes", "no")

    found = accuracies(rule)
    assert found["words_response"] < 0.7 and found["words_both"] > 0.8


def test_unknown_features_are_refused():
    few = pairs(lambda i: ("no", "yes"), 4, 0)
    with pytest.raises(InputError, match="reads: 'images'"):
        fit_text_baseline([], few, [], few, reads=["images"])


class Numbers:
    """A trunk whose answers count up, a router that knows one category, and models that like, or hate, large ones."""

    categories, calibration = ["insult"], Calibration(("insult",), (0.0,), (1.0,), 2)

    def __init__(self, sign: int = 1):
        self.sign = sign

    def generate(self, prompts, max_new_tokens, seed):
        assert max_new_tokens == 5 and seed == 7
        return [str(at) for at in range(len(prompts))]

    def route(self, prompts):
        return ["insult"] * len(prompts)

    def score(self, prompts, completions, categories=None):
        scores = torch.tensor([self.sign * float(answer) for answer in completions])
        return scores if categories else scores.unsqueeze(1)


def test_the_best_of_n_is_what_each_set_likes_best_of_the_answers_to_one_prompt():
    """Two prompts with answers 0 to 3 and 4 to 7, and each is worth a tenth of its number."""

    def referee(prompts, answers):
        assert prompts == ["one"] * 4 + ["two"] * 4
        return [Verdict("", int(answer) / 10, False, False, True) for answer in answers]

    sets = {"likes": Numbers(), "hates": Numbers(-1)}
    rows = best_of_n_by_sets(sets, Numbers(), Numbers(), ["one", "two"], referee, 4, 5, seed=7)
    truth = {(row["method"], row["n"]): row["truth"] for row in rows}
    assert {n for _, n in truth} == {1, 2, 4}
    assert truth["likes", 4] == truth["oracle", 4] == pytest.approx((0.3 + 0.7) / 2)
    assert truth["hates", 4] == pytest.approx((0.0 + 0.4) / 2) and truth["hates", 1] == pytest.approx(0.35)


def test_accuracy_on_pairs_of_the_kind_that_was_trained_on():
    """Three pairs that somebody gave, rejected answers first: gaps of two models (1, -1), (-1, 1), (2, -1)."""
    pairs = {"category": ["a", "b", "unknown", "b"], "origin": ["contrary", "policy", "own", "corrupted"]}
    rejected, chosen = torch.zeros(3, 2), torch.tensor([[1.0, -1.0], [-1.0, 1.0], [2.0, -1.0]])
    raw = {"seven": torch.cat([rejected, chosen]), "one": torch.cat([rejected, chosen])[:, 1:]}
    seven, one = accuracy_of_own_kind(raw, pairs, ["a", "b"])
    assert (seven["label"], seven["estimate"], seven["pairs"]) == ("seven", 1.0, 3), "unknown: the mean of both, 0.5"
    assert one["estimate"] == pytest.approx(1 / 3) and one["low"] < one["estimate"] < one["high"], "-1, 1, -1"
