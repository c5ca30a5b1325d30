"""Exercises that check themselves: a reader's function beside the library's own, on a few small inputs.

A notebook asks for a function and hands it over: `check_exercise("04.1", clipped_gain)` prints one line. The exercises
stand in the order of the notebooks: what a function is called with, what is right, and at the end their names. Among
the inputs of each is one that the first idea gets wrong. All is imported late, so that a notebook that needs no torch
loads none.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import isclose

from srmir_lib.errors import InputError

SHOWN = 200
"""Characters of an argument or a result that a line holds at most."""


@dataclass(frozen=True)
class Exercise:
    """`inputs()` are the arguments of each call, `right` returns what is wanted of them; a number may be off by
    `tolerance`, absolute or relative."""

    inputs: Callable[[], list[tuple]]
    right: Callable
    tolerance: float = 1e-4


def check_exercise(name: str, function: Callable) -> None:
    """Print one line about a reader's `function`: right; not done yet; or for which input it returns what, or raises.

    Whatever the function does, nothing is raised: the notebook goes on. A name of no exercise is an `InputError`.
    """
    if name not in EXERCISES:
        raise InputError(f"exercise: {name!r} is none of {', '.join(EXERCISES)}")
    print(f"{name}: {_verdict(EXERCISES[name], function)}")


def _verdict(exercise: Exercise, function: Callable) -> str:
    for arguments in exercise.inputs():
        wanted = _plain(exercise.right(*deepcopy(arguments)))
        call = f"{getattr(function, '__name__', 'f')}({', '.join(_shown(_plain(one)) for one in arguments)})"
        try:
            given = _plain(function(*deepcopy(arguments)))
        except NotImplementedError:
            return "not done yet"
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            return f"your function raised {type(error).__name__}: {said[:SHOWN]}, called as {call}"
        if not _same(given, wanted, exercise.tolerance):
            return f"for {call} you return {_shown(given)}, wanted {_shown(wanted)}"
    return "right"


def _plain(value):
    """Tensors, arrays and tuples as lists of numbers; all else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _same(given, wanted, tolerance: float) -> bool:
    if isinstance(wanted, list):
        alike = isinstance(given, list) and len(given) == len(wanted)
        return alike and all(_same(*pair, tolerance) for pair in zip(given, wanted, strict=True))
    if isinstance(wanted, float):
        number = isinstance(given, int | float)
        return number and isclose(given, wanted, rel_tol=tolerance, abs_tol=tolerance)
    return type(given) is type(wanted) and given == wanted


def _shown(value) -> str:
    """The value on one line, numbers with four digits, cut where it is too long."""
    if isinstance(value, list):
        text = f"[{', '.join(map(_shown, value))}]"
    else:
        text = f"{value:.4g}" if isinstance(value, float) else " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _normal(*shape: int, seed: int):
    """Standard normal draws with one decimal, so that they can be followed with a pencil."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).round(decimals=1)


# 00: one group's advantages


def _one_group() -> list[tuple]:
    """Rewards (G,); in the last group all are alike."""
    return [(_normal(4, seed=0),), (10 * _normal(6, seed=1) + 5,), (_normal(1, seed=2).expand(4).clone(),)]


def _advantages(rewards):
    from srmir_lib.papers.grpo import group_advantages

    return group_advantages(rewards, len(rewards))


# 01: what several drafts agree on


def _readings() -> list[tuple]:
    """(Category, refuse?) of each draft, None for what is no draft; and how many must agree."""
    privacy, harmless, insult = ("privacy", True), ("privacy", False), ("insult", True)
    return [
        ([privacy, harmless, privacy], 2),
        ([privacy, harmless, insult], 2),  # privacy twice and to refuse twice, but never together
        ([None, insult, None], 1),  # what is no draft has no vote
        ([None, None], 1),
    ]


def _agreed(readings, needed):
    from srmir_lib.data.introspection import agree

    words = {True: "forbidden", False: "allowed"}
    texts = [f"a thing ; {one[0]} , {words[one[1]]} #### so ." if one else "no draft" for one in readings]
    found, _ = agree(texts, {"privacy": "privacy", "insult": "insult"}, ["forbidden"], needed)
    return (found.category, found.refuses) if found else None


# 02: the loss of pairs, with or without a margin


def _scored_pairs() -> list[tuple]:
    """Scores of better and worse answers (N,), margins (N,); the last pair is a thousand units wrong."""
    import torch

    far = [torch.tensor([value]) for value in (-500.0, 500.0, 0.0)]
    return [
        (_normal(3, seed=0), _normal(3, seed=1), torch.zeros(3)),
        tuple(_normal(3, seed=n) for n in (2, 3, 4)),
        tuple(far),
    ]


def _pair_loss(chosen, rejected, margins):
    from srmir_lib.papers.legend import margin_loss

    return margin_loss(chosen, rejected, margins)


# 03: from embeddings to margins


def _embedded() -> list[tuple]:
    """Embeddings of better and worse answers (N, H), and of safe and harmful ones (M, H), whose differences are of very
    different lengths."""
    safe, harmful = _normal(3, 2, seed=2), _normal(3, 2, seed=3)
    safe[0] += 10
    return [(_normal(4, 2, seed=0), _normal(4, 2, seed=1), safe, harmful)]


def _target_margins(chosen, rejected, safe, harmful):
    from srmir_lib.papers.legend import legend_margin, safety_direction, scale_margins

    return scale_margins(legend_margin(chosen, rejected, safety_direction(safe, harmful)), "unit", "clip")


# 04: what a token gains


def _tokens() -> list[tuple]:
    """Ratios (N,), advantages (N,), epsilon; the last call has all four corners."""
    import torch

    corners = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    return [(1 + 0.1 * _normal(4, seed=0), _normal(4, seed=1), 0.2), (*corners, 0.2)]


def _clipped_gain(ratio, advantage, epsilon):
    import torch

    from srmir_lib.papers.grpo import grpo_loss

    old, one = torch.zeros(1, 1), torch.ones(1, 1)
    rest = {"beta": 0.0, "epsilon": epsilon, "loss_type": "dapo", "use_bias_correction_kl": False}
    pairs = zip(ratio, advantage, strict=True)
    return torch.stack([-grpo_loss(r.log().view(1, 1), old, old, one, a.view(1), **rest) for r, a in pairs])


# 05: from the router's probabilities to the reward


def _routed() -> list[tuple]:
    """Scores (N, K), the router's probabilities (N, K), its threshold; the last rows are at and below it."""
    import torch

    sure = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    unsure = torch.tensor([[0.25, 0.5, 0.25], [0.4, 0.25, 0.35]])
    return [(_normal(2, 3, seed=0), sure, 0.5), (_normal(2, 3, seed=1), unsure, 0.5)]


def _routed_reward(scores, probabilities, threshold):
    import torch

    from srmir_lib.papers.srmir import categorized_reward

    highest, category = probabilities.max(dim=1)
    return categorized_reward(scores, torch.where(highest >= threshold, category, -1))


# 06: balanced goodness


def _ruled() -> list[tuple]:
    """Rows of a policy's answers; the second policy refuses everything."""

    def row(kind: str, goodness: float, rung: str) -> dict:
        return {"kind": kind, "goodness": goodness, "rung": rung}

    some = [row("harmful", 1.0, "reasoned_refusal"), row("harmful", 0.0, "full"), row("harmful", 0.5, "partial")]
    some += [row("lookalike", 0.0, "full"), row("utility", 0.0, "answered")]
    refused = [row(kind, 1.0, "bare_refusal") for kind in ("harmful", "harmful", "harmful", "lookalike")]
    return [(some,), (refused,)]


def _balanced(rows):
    from srmir_lib.evaluation.measures import balanced_goodness

    return balanced_goodness(rows).estimate


# A0: DPO


def _log_probabilities() -> list[tuple]:
    """Four log-probabilities (N,) and beta: some pairs, a policy that is its reference, and one far from right."""
    import torch

    four = [-10 + _normal(3, seed=seed) for seed in range(4)]
    far = [torch.tensor([value]) for value in (-900.0, -10.0, -10.0, -10.0)]
    return [(*four, 0.5), (*four[:2], *four[:2], 0.5), (*far, 0.5)]


def _dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    from srmir_lib.papers.srmir import bradley_terry_loss

    return bradley_terry_loss(beta * (chosen - ref_chosen), beta * (rejected - ref_rejected))


# A1: the reward that explains the next token


def _q_values() -> list[tuple]:
    """Q (B, T), mask (B, T), gamma; in the last call an answer is shorter than its row, and what fills it is loud."""
    import torch

    whole, short = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, True], [True, True, False]])
    q_values = -_normal(2, 3, seed=1).abs()
    q_values[1, 2] = 99.0
    return [(-_normal(1, 3, seed=0).abs(), whole, 1.0), (q_values, short, 0.5)]


def _token_rewards(q_values, mask, gamma):
    from srmir_lib.papers.ava import ava_td_error

    return ava_td_error(q_values, mask, gamma)


# A2: DPO that trusts a label as far as its confidence goes


def _trusted_gaps() -> list[tuple]:
    """Implicit gaps (N,) and confidences (N,); the last pair is hundreds of units wrong."""
    import torch

    far = torch.tensor([0.5, -445.0]), torch.tensor([0.9, 0.8])
    return [(_normal(3, seed=0), torch.tensor([0.5, 0.7, 1.0])), (_normal(1, seed=1), torch.tensor([0.6])), far]


def _trusted_loss(gap, confidence):
    import torch

    from srmir_lib.papers.rbrm import confidence_dpo_loss

    return confidence_dpo_loss(gap, torch.zeros_like(gap), confidence, beta=1.0)


# A3: what to pay for a scaled advantage


def _two_groups_and_their_scales() -> list[tuple]:
    """Rewards (N,) of groups of three, far apart; a scale each: none, and a different one for each."""
    import torch

    rewards = _normal(6, seed=3)
    rewards[3:] += 10
    return [(rewards, 3, torch.ones(2)), (rewards, 3, torch.tensor([0.5, 2.0]))]


def _scaled(rewards, num_generations, alpha):
    from srmir_lib.papers.dr_irl import scaled_advantages

    return scaled_advantages(rewards, num_generations, alpha)


# A6: Holm's adjustment


def _p_values() -> list[tuple]:
    """p values in no order: one that must not fall below a smaller one, and some that would be more than one."""
    return [([0.2, 0.001, 0.01],), ([0.004, 0.03, 0.02],), ([0.6, 0.9],)]


def _adjusted(p_values):
    from srmir_lib.statistics import holm

    return holm(p_values)


# A7: two ways to pay


def _two_groups() -> list[tuple]:
    """Rewards (N,) of groups of three, one far above the other; both ways to scale them, quiet and three times loud."""
    rewards = _normal(6, seed=0)
    rewards[3:] += 10
    return [(loud * rewards, 3, scale) for scale in ("group", "none") for loud in (1, 3)]


def _paid(rewards, num_generations, scale_rewards):
    from srmir_lib.papers.grpo import group_advantages

    if scale_rewards == "group":
        return group_advantages(rewards, num_generations)
    groups = rewards.view(-1, num_generations)
    return (groups - groups.mean(dim=1, keepdim=True)).flatten()


EXERCISES: dict[str, Exercise] = {
    "00.1": Exercise(_one_group, _advantages, tolerance=1e-3),
    "01.1": Exercise(_readings, _agreed),
    "02.1": Exercise(_scored_pairs, _pair_loss),
    "03.1": Exercise(_embedded, _target_margins),
    "04.1": Exercise(_tokens, _clipped_gain),
    "05.1": Exercise(_routed, _routed_reward),
    "06.1": Exercise(_ruled, _balanced),
    "A0.1": Exercise(_log_probabilities, _dpo_loss),
    "A1.1": Exercise(_q_values, _token_rewards),
    "A2.1": Exercise(_trusted_gaps, _trusted_loss),
    "A3.1": Exercise(_two_groups_and_their_scales, _scaled, tolerance=1e-3),
    "A6.1": Exercise(_p_values, _adjusted),
    "A7.1": Exercise(_two_groups, _paid, tolerance=1e-3),
}
"""Name, the notebook's number and the exercise's, -> what is checked."""
