"""What groups of answers to one prompt tell: what one token contributes to GRPO's loss, and what decides before any
training: whether groups differ in worth, whether refusals are sampled, and which rewards know the better answer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srmir_lib.conversations import opens_with_refusal
from srmir_lib.papers.grpo import grpo_loss, kl_estimate
from srmir_lib.policies.callbacks import answer_ids, token_log_probabilities
from srmir_lib.settings.policies import GRPOSettings
from srmir_lib.statistics import is_correct

DIFFERENT = 0.05
"""Worths that differ by less are equal: two rungs of the lab's referee are at least twice as far apart. Rewards are in
deviations of a calibrated score, and such a difference is next to none."""


def group_log_probabilities(
    models: Sequence, tokenizer, prompt, answers: Sequence[str], longest: int | None = None, temperature: float = 1.0
) -> tuple[list[Tensor], Tensor, list[list[str]]]:
    """Log-probabilities in nats, (G, T) under each of `models`, of the tokens of G answers to one prompt; the mask
    (G, T), 1 for tokens and 0 for padding; and the tokens as texts, a list an answer. Each ends with its end token, but
    for one that was cut at `longest` tokens. `temperature`: at which the answers were drawn."""
    asked, said = answer_ids(models[0], tokenizer, [prompt] * len(answers), answers, longest)
    begin = len(asked[0]) - 1  # position t predicts token t + 1
    read = [token_log_probabilities(model, asked, said, len(said), temperature)[0] for model in models]
    tokens = [[tokenizer.decode([number]) for number in ids] for ids in said]
    return [values[:, begin:] for values, _ in read], read[0][1][:, begin:], tokens


def token_account(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    at: tuple[int, int],
    grpo: GRPOSettings,
) -> dict[str, float]:
    """What one token, `at` (answer, place), contributes to `grpo_loss` of its group, step by step; shapes as there.

    Its weight is its share in the mean: one in all tokens (`loss_type` dapo), or one in its answer's tokens and in the
    answers (grpo). The contributions of all tokens add up to the loss.
    """
    terms, alone = (log_probs, old_log_probs, ref_log_probs), torch.zeros_like(mask)
    alone[at] = 1
    rules = grpo.beta, grpo.epsilon, "dapo", grpo.use_bias_correction_kl
    term = grpo_loss(*terms, alone, advantages, *rules).item()
    weight = 1 / (mask.sum() if grpo.loss_type == "dapo" else len(mask) * mask[at[0]].sum()).item()
    ratio, advantage = (log_probs[at] - old_log_probs[at]).exp(), advantages[at[0]]
    clipped = ratio.clamp(1 - grpo.epsilon, 1 + grpo.epsilon)
    steps = {
        "log-probability when drawn (nats)": old_log_probs[at],
        "log-probability under the policy (nats)": log_probs[at],
        "ratio": ratio,
        "clipped ratio": clipped,
        "advantage": advantage,
        "gain: the smaller of both ratios × advantage": torch.minimum(ratio * advantage, clipped * advantage),
        "KL estimate (nats)": kl_estimate(log_probs[at], ref_log_probs[at]),
    }
    leash = grpo.beta * steps["KL estimate (nats)"]
    if grpo.use_bias_correction_kl:
        steps["leash: beta × ratio × KL estimate"] = leash * ratio
    else:
        steps["leash: beta × KL estimate"] = leash
    account = {name: value.item() for name, value in steps.items()}
    return account | {"term of the loss": term, "weight in the mean": weight, "contribution": term * weight}


def start_signals(
    answers: Sequence[Sequence[str]],
    rewards: Mapping[str, Tensor],
    harmful: Sequence[bool],
    worth: Tensor | None = None,
) -> dict[str, float]:
    """What a policy can learn from its own samples, answers (P, G), before it is trained; name -> fraction.

    `groups_differ`: groups whose answers differ in `worth` (P, G), the referee's; without it, in the first of the
    `rewards` (name -> (P, G)). `refused_where_harmful`: answers to prompts known as `harmful` (P,) that open with a
    refusal. `best_of_2_…`: pairs of answers to one prompt, different in worth, of which this reward is higher for the
    better one; a tie counts one half, and chance is one half. What nothing is known about is left out.
    """
    seen = next(iter(rewards.values())) if worth is None else worth
    lowest, highest = seen.aminmax(dim=1)
    found = {"groups_differ": (highest - lowest > DIFFERENT).float().mean().item()}
    refused = [opens_with_refusal(text) for group, due in zip(answers, harmful, strict=True) if due for text in group]
    found |= {"refused_where_harmful": sum(refused) / len(refused)} if refused else {}
    if worth is None:
        return found
    left, right = torch.triu_indices(worth.shape[1], worth.shape[1], offset=1)
    better = worth[:, left] - worth[:, right]
    apart = better.abs() > DIFFERENT
    for name, paid in rewards.items() if apart.any() else ():
        gap = (paid[:, left] - paid[:, right]) * better.sign()
        found[f"best_of_2_{name}"] = is_correct(gap[apart]).mean().item()
    return found


EASIER, HARDER = "easier", "harder"


def difficulty_of(worth: Tensor) -> list[str]:
    """Which half each prompt is in, by the mean worth (P, G) of its answers: `HARDER` is the half that is worth less,
    and the smaller one, where the number is odd; of equals the first are harder."""
    order = worth.mean(dim=1).argsort(stable=True).tolist()
    harder = {*order[: len(order) // 2]}
    return [HARDER if row in harder else EASIER for row in range(len(order))]
