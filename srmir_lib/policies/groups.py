r"""Groups of answers to one prompt: sampled, paid as a trainer pays them, and the best of each kept to be imitated.

Best-of-n, or rejection sampling (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3; Dong et al. 2023, arXiv
2304.06767): $y^*=\arg\max_i R(x,y_i)$ of $n$ samples, then imitation of $y^*$. Read `best_of_groups` first.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from srmir_lib.conversations import assistant_message
from srmir_lib.errors import InputError
from srmir_lib.models.generation import generate

ALIKE = 1e-5
"""Rewards that differ by less are the same but for rounding: one answer, scored beside different rows."""


def best_of_groups(rewards: Tensor, cut: Tensor | None = None) -> Tensor:
    """Which answer of each group has the highest reward, the first of several; -1 where all are paid alike: rewards
    (P, G), places (P,). Answers that are `cut` (P, G), bool, do not count."""
    cut = torch.zeros_like(rewards, dtype=torch.bool) if cut is None else cut
    highest, best = rewards.masked_fill(cut, -torch.inf).max(dim=1)
    lowest = rewards.masked_fill(cut, torch.inf).amin(dim=1)
    return torch.where(highest - lowest < ALIKE, -1, best)


def sample_groups(policy, tokenizer, prompts: Sequence, num_generations: int, **sampling) -> list[list[str]]:
    """G answers to each of P prompts, (P, G) texts; `sampling` is what `generate` is told."""
    said = generate(policy, tokenizer, [prompt for prompt in prompts for _ in range(num_generations)], **sampling)
    return [said[start : start + num_generations] for start in range(0, len(said), num_generations)]


def as_called(columns: Mapping[str, Sequence], answers: Sequence[Sequence[str]]) -> dict[str, list]:
    """What TRL calls a reward function with, were answers (P, G) the completions: prompts, completions and `columns`
    (name -> values (P,), `prompt` among them), each with P * G rows, groups behind one another."""
    sizes = [len(group) for group in answers]
    rows = {
        name: [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
        for name, values in columns.items()
    }
    said = [assistant_message(text) for group in answers for text in group]
    return {"prompts": rows.pop("prompt"), "completions": said} | rows


def pay_groups(reward: Callable, columns: Mapping[str, Sequence], answers: Sequence[Sequence[str]]) -> Tensor:
    """Rewards (P, G) of answers (P, G), by a reward function as TRL calls it: `reward(prompts, completions, **columns)`
    with a value a completion. `columns`: name -> values (P,), `prompt` among them."""
    return torch.tensor(reward(**as_called(columns, answers))).float().view(len(answers), -1)


def best_answers(
    policy, tokenizer, prompts: Dataset, reward: Callable, num_generations: int, max_new_tokens: int, **sampling
) -> tuple[Dataset, int]:
    """Demonstrations (columns prompt, completion) for `train_sft`: of each prompt the answer that `reward` pays most;
    and how many prompts are left out, because all of their answers are paid alike. An answer that `max_new_tokens` cut
    does not count where two others ended by themselves: SFT would teach to end there.

    `prompts`: a column prompt, and whatever the reward function reads. That no prompt is left is an `InputError`.
    """
    sampling |= {"max_new_tokens": max_new_tokens}
    answers = sample_groups(policy, tokenizer, prompts["prompt"], num_generations, **sampling)
    lengths = [[len(tokenizer.encode(text, add_special_tokens=False)) for text in group] for group in answers]
    cut = torch.tensor(lengths) >= max_new_tokens
    cut &= (~cut).sum(dim=1, keepdim=True) >= 2
    best = best_of_groups(pay_groups(reward, prompts[:], answers), cut).tolist()
    rows = [
        {"prompt": prompt, "completion": assistant_message(group[place])}
        for prompt, group, place in zip(prompts["prompt"], answers, best, strict=True)
        if place >= 0
    ]
    if not rows:
        tried = f"all {len(prompts)} prompts have {num_generations} answers of one reward"
        raise InputError(f"best of {num_generations}: {tried}; sample more of them, or at a higher temperature")
    return Dataset.from_list(rows), best.count(-1)
