"""What groups of answers tell: one token's account against the loss itself, and what decides before any training."""

import math

import pytest
import torch

from srmir_lib.conversations import user_message
from srmir_lib.evaluation.group_report import (
    difficulty_of,
    group_log_probabilities,
    start_signals,
    token_account,
)
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.papers.grpo import grpo_loss
from srmir_lib.settings.policies import GRPOSettings

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
ADVANTAGES = torch.tensor([0.5, -2.0])


def rules(**changes) -> GRPOSettings:
    common = {"max_steps": 1, "seed": 0, "device": "cpu", "beta": 0.5, "epsilon": 0.2, "use_bias_correction_kl": False}
    return GRPOSettings.checked(common | changes)


def test_one_token_by_hand():
    """Twice as likely as when it was drawn: the clip stops a better answer's gain, not a worse one's."""
    old = torch.zeros(2, 3)
    own = old + math.log(2)
    better = token_account(own, old, old, MASK, ADVANTAGES, (0, 1), rules())
    kl = 0.5 + math.log(2) - 1  # of the reference's probability, half of the policy's
    assert (better["ratio"], better["clipped ratio"], better["advantage"]) == pytest.approx((2, 1.2, 0.5))
    assert better["gain: the smaller of both ratios × advantage"] == pytest.approx(0.6)
    assert better["KL estimate (nats)"] == pytest.approx(kl)
    assert better["leash: beta × KL estimate"] == pytest.approx(0.5 * kl), "without the ratio, as told"
    assert better["term of the loss"] == pytest.approx(0.5 * kl - 0.6)
    assert better["contribution"] == pytest.approx((0.5 * kl - 0.6) / 5), "one of five tokens"
    worse = token_account(own, old, old, MASK, ADVANTAGES, (1, 0), rules(loss_type="grpo", use_bias_correction_kl=True))
    assert worse["leash: beta × ratio × KL estimate"] == pytest.approx(0.5 * 2 * kl)
    assert worse["term of the loss"] == pytest.approx(0.5 * 2 * kl + 4), "and the KL estimate has the ratio before it"
    assert worse["weight in the mean"] == pytest.approx(1 / 6), "one of three tokens of one of two answers"


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_the_accounts_of_all_tokens_add_up_to_the_loss(loss_type):
    own, old, ref = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    how = rules(loss_type=loss_type)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    total = sum(token_account(own, old, ref, MASK, ADVANTAGES, at, how)["contribution"] for at in places)
    loss = grpo_loss(own, old, ref, MASK, ADVANTAGES, how.beta, how.epsilon, loss_type, how.use_bias_correction_kl)
    assert total == pytest.approx(loss.item(), abs=1e-5)


def test_the_tokens_of_a_group_and_their_probabilities(tiny_model):
    policy, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    prompt, answers = user_message("please help"), ["no", "first get ready"]
    (values, again), mask, tokens = group_log_probabilities([policy, policy], tokenizer, prompt, answers)
    assert torch.equal(values, again) and mask.sum(1).tolist() == [len(own) for own in tokens]
    for row, answer in enumerate(answers):
        assert tokens[row][-1] == tokenizer.eos_token
        begun = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        ids = [*begun, *tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            likely = policy(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(len(tokens[row])):
            at = len(begun) + place
            assert values[row, place].item() == pytest.approx(likely[at - 1, ids[at]].item(), abs=1e-4)


def test_an_answer_that_was_cut_has_no_end(tiny_model):
    policy, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    length = len(tokenizer.encode("first get ready", add_special_tokens=False))
    _, mask, tokens = group_log_probabilities([policy], tokenizer, user_message("a"), ["no", "first get ready"], length)
    assert tokens[0][-1] == tokenizer.eos_token != tokens[1][-1] and mask[1].sum() == len(tokens[1]) == length


ANSWERS = [["I can not .", "sure", "sure", "I can not ."], ["sure"] * 4, ["sure", "I can't", "sure", "sure"]]
WORTH = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.5, 0.52]])
REWARDS = {
    "knows": torch.tensor([[3.0, 1.0, 1.0, 3.0], [0.0, 9.0, 0.0, 0.0], [9.0, 1.0, 2.0, 3.0]]),
    "tied": torch.zeros(3, 4),
    "likes refusals": torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]),
}


def test_what_decides_by_hand():
    """Pairs that differ in worth: four in the first group; five in the last, whose third and fourth count as equal."""
    found = start_signals(ANSWERS, REWARDS, [True, True, False], WORTH)
    assert found == pytest.approx(
        {
            "groups_differ": 2 / 3,
            "refused_where_harmful": 2 / 8,
            "best_of_2_knows": 1.0,
            "best_of_2_tied": 0.5,
            "best_of_2_likes refusals": (4 + 0 + 0 + 0 + 0.5 + 0.5) / 9,
        }
    )


def test_without_a_referee_the_first_reward_says_which_groups_differ():
    assert start_signals(ANSWERS, REWARDS, [False] * 3) == {"groups_differ": 1.0}
    assert start_signals(ANSWERS, {"tied": REWARDS["tied"]}, [False] * 3) == {"groups_differ": 0.0}
    same = start_signals(ANSWERS, REWARDS, [False] * 3, torch.ones(3, 4))
    assert same == {"groups_differ": 0.0}, "no two answers differ, so no reward can be right"


def test_the_harder_half_by_hand():
    worth = torch.tensor([[1.0, 1.0], [0.0, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    assert difficulty_of(worth) == ["easier", "harder", "harder", "easier", "easier"], "of equals the first"
    assert difficulty_of(worth[:1]) == ["easier"]
