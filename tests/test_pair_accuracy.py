"""Pair accuracy by hand, and a bag of words that solves what words can solve and nothing else."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from srmir_lib.errors import InputError
from srmir_lib.evaluation.bag_of_words import bag_of_words_gaps
from srmir_lib.evaluation.reward_accuracy import (
    accuracy_matrix,
    accuracy_rows,
    as_metrics,
    category_index,
    difference_rows,
    gaps_of_sets,
    reward_gaps,
)
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.statistics import is_correct


def test_accuracy_by_hand():
    gaps = torch.tensor([[1.0, -1.0], [-2.0, 3.0], [0.0, 0.5]])
    assert is_correct(gaps).tolist() == [[1, 0], [0, 1], [0.5, 1]]
    matrix = accuracy_matrix(gaps, ["crimes", "crimes", "privacy"], ["crimes", "privacy", "ethics"])
    assert matrix[:, :2].tolist() == [[0.5, 0.5], [0.5, 1.0]]
    assert np.isnan(matrix[:, 2]).all(), "no pair of ethics"


def test_names_become_columns():
    assert category_index(["b", "a", "unknown"], ["a", "b"]).tolist() == [1, 0, -1]


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


def accuracy(rule, features: str) -> float:
    gaps = bag_of_words_gaps(pairs(rule, 200, 0), pairs(rule, 100, 1), pairs(rule, 100, 2), features)
    return is_correct(gaps).mean()


def test_a_telling_word_is_found():
    assert accuracy(lambda i: ("no", "yes"), "response") > 0.97


def test_a_word_whose_meaning_depends_on_the_prompt_needs_both():
    def rule(i):
        return ("no", "yes") if i % 2 else ("yes", "no")

    assert accuracy(rule, "response") < 0.7
    assert accuracy(rule, "products") > 0.8


def test_unknown_features_are_refused():
    few = pairs(lambda i: ("no", "yes"), 4, 0)
    with pytest.raises(InputError, match="reads: 'images'"):
        bag_of_words_gaps(few, few, few, "images")
