"""Groups of answers: sampled, paid, and the best kept; expected values are counted by hand."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.policies import groups
from srmir_lib.policies.groups import best_answers, best_of_groups, pay_groups, sample_groups

SAID = {"a": ["one", "three e e e", "e e e", "e"], "b": ["no", "no", "no", "no"], "c": ["", "x", "e", "e e"]}
"""Prompt -> what the policy of these tests says to it, in turn."""

PROMPTS = Dataset.from_list([{"prompt": user_message(text), "category": f"of {text}"} for text in SAID])


TOKENIZER = SimpleNamespace(encode=lambda text, add_special_tokens: text.split())


@pytest.fixture
def spoken(monkeypatch) -> list[dict]:
    """A policy that reads from `SAID`; the list of how it was asked to sample."""
    asked = []

    def generate(policy, tokenizer, prompts, **sampling):
        asked.append(sampling)
        lines = {text: iter(answers) for text, answers in SAID.items()}
        return [next(lines[prompt[0]["content"]]) for prompt in prompts]

    monkeypatch.setattr(groups, "generate", generate)
    return asked


def letters(prompts, completions, category):
    """Letters e; and a check that each completion comes with its prompt and column, in the form that TRL uses."""
    for prompt, completion, name in zip(prompts, completions, category, strict=True):
        assert prompt[0]["role"] == "user" and name == f"of {prompt[0]['content']}"
        assert [turn["role"] for turn in completion] == ["assistant"]
        assert completion[0]["content"] in SAID[prompt[0]["content"]]
    return [completion[0]["content"].count("e") for completion in completions]


def test_the_best_is_the_first_of_the_best_and_none_where_all_are_alike():
    rewards = torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0], [0.0, -1.0, -2.0], [0.3, 0.3 + 1e-7, 0.3]])
    assert best_of_groups(rewards).tolist() == [1, -1, 0, -1]


def test_what_was_cut_is_not_the_best_and_does_not_make_the_others_unlike():
    rewards = torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, 9.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    cut = torch.tensor([[False, True, False], [False, False, True], [True, True, True], [True, False, True]])
    assert best_of_groups(rewards, cut).tolist() == [2, -1, -1, -1], "one answer is not better than none"


def test_groups_are_paid_as_trl_pays(spoken):
    answers = sample_groups("policy", "tokenizer", PROMPTS["prompt"], 4, seed=3)
    assert answers == list(SAID.values()) and spoken == [{"seed": 3}]
    rewards = pay_groups(letters, PROMPTS[:], answers)
    assert rewards.tolist() == [[1, 5, 3, 1], [0, 0, 0, 0], [0, 0, 1, 2]] and rewards.dtype == torch.float32


def test_the_best_of_n_become_demonstrations_and_what_teaches_nothing_is_counted(spoken):
    rows, left_out = best_answers("policy", TOKENIZER, PROMPTS, letters, 4, 5, temperature=0.5)
    assert left_out == 1 and spoken == [{"temperature": 0.5, "max_new_tokens": 5}]
    assert rows.to_list() == [
        {"prompt": user_message("a"), "completion": assistant_message("three e e e")},
        {"prompt": user_message("c"), "completion": assistant_message("e e")},
    ]
    rows, left_out = best_answers("policy", TOKENIZER, PROMPTS, letters, 2, 5)
    assert left_out == 2 and rows["completion"][:] == [assistant_message("three e e e")]


def test_an_answer_that_was_cut_is_not_imitated(spoken):
    rows, left_out = best_answers("policy", TOKENIZER, PROMPTS, letters, 4, 4)
    assert left_out == 1 and rows["completion"][:] == [assistant_message("e e e"), assistant_message("e e")]
    rows, left_out = best_answers("policy", TOKENIZER, PROMPTS, letters, 4, 1)
    assert left_out == 1 and rows["completion"][:] == [assistant_message("three e e e"), assistant_message("e e")], (
        "where fewer than two ended, the best of all"
    )


def test_no_group_of_different_rewards_is_told_with_the_fix(spoken):
    with pytest.raises(InputError, match="best of 4: all 1 prompts have 4 answers of one reward; sample more"):
        best_answers("policy", TOKENIZER, PROMPTS.select([1]), letters, 4, 5)


def test_a_real_policy_is_sampled_anew_for_every_answer_and_alike_with_its_seed(tiny_model):
    policy, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    how = {"max_new_tokens": 6, "temperature": 1.0, "seed": 1}
    found = sample_groups(policy, tokenizer, PROMPTS["prompt"], 3, **how)
    assert [len(set(group)) for group in found] == [3, 3, 3]
    assert sample_groups(policy, tokenizer, PROMPTS["prompt"], 3, **how) == found
