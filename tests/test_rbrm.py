"""RBRM's functions by hand, by a second and plainer implementation, and what must hold of any input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srmir_lib.errors import InputError
from srmir_lib.papers.legend import margin_loss
from srmir_lib.papers.rbrm import (
    ALPHA,
    batch_confidence,
    best_and_worst,
    confidence_dpo_loss,
    hybrid_reward,
    pair_confidence,
    readout_loss,
)

numbers = st.floats(-20, 20)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6)
small = st.floats(-3, 3)


def columns(rows) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_the_hybrid_reward_by_hand():
    states = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
    weights, bias = torch.tensor([[1.0, -1.0], [2.0, 3.0]]), torch.tensor([0.5, -1.0])
    # s = (1 - 2 + .5, 3 - 1) = (-.5, 2) and (.5, 5 - 1) = (.5, 4); without a gate, half of their sum
    assert hybrid_reward(states, weights, bias, torch.zeros(2, 2)).tolist() == [0.75, 2.25]
    gate = torch.tensor([[0.0, math.log(3) / 2], [2 * math.log(3), 0.0]])
    # V s of the first: (ln 3, -ln 3), so g = (3/4, 1/4) and r = -.375 + .5
    assert hybrid_reward(states[:1], weights, bias, gate).tolist() == pytest.approx([0.125])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_the_hybrid_reward_by_loops(count, layers, size, seed):
    torch.manual_seed(seed)
    states, weights = torch.randn(count, layers, size).double(), torch.randn(layers, size).double()
    bias, gate = torch.randn(layers).double(), torch.randn(layers, layers).double()
    found = hybrid_reward(states, weights, bias, gate)
    for row in range(count):
        each = [
            sum(weights[at, i].item() * states[row, at, i].item() for i in range(size)) + bias[at].item()
            for at in range(layers)
        ]
        open_ = [sigmoid(sum(gate[at, k].item() * each[k] for k in range(layers))) for at in range(layers)]
        assert found[row].item() == pytest.approx(sum(g * s for g, s in zip(open_, each, strict=True)), rel=1e-9)
    order = torch.randperm(layers)
    mixed = hybrid_reward(states[:, order], weights[order], bias[order], gate[order][:, order])
    assert torch.allclose(mixed, found), "no layer is before another"


@given(pairs)
def test_the_readout_loss_by_a_loop(rows):
    chosen, rejected = columns(rows)
    assert readout_loss(chosen, rejected).item() == pytest.approx(mean(softplus(r + 1 - c) for c, r in rows), rel=1e-9)
    legend = margin_loss(chosen, rejected, torch.ones_like(chosen))
    assert readout_loss(chosen, rejected).item() == pytest.approx(legend.item(), rel=1e-12)


def test_the_readout_loss_by_hand():
    # gaps of 1 and 1 + ln 3: -log(1/2) and -log(3/4)
    loss = readout_loss(torch.tensor([2.0, 1 + math.log(3)]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-6)


def test_confidence_by_hand():
    # sigma(ln 3) = 3/4, sigma(-ln 3) = 1/4: c - r = 1/2, 0 and -1/2
    odds = math.log(3)
    chosen, rejected = torch.tensor([odds, odds, -odds]), torch.tensor([-odds, odds, odds])
    sure = 1 / (1 + math.exp(-3.75))
    assert pair_confidence(chosen, rejected).tolist() == pytest.approx([sure, 0.5, 0.5])
    assert batch_confidence(chosen, rejected).item() == 0.5, "the first and the last undo each other"
    assert batch_confidence(chosen[:2], rejected[:2]).item() == pytest.approx(1 / (1 + math.exp(-1.875)))
    assert pair_confidence(chosen[:1], rejected[:1], alpha=2.0).item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert ALPHA == 7.5


@given(pairs, st.floats(0, 10))
def test_confidence_by_loops_and_its_bounds(rows, alpha):
    chosen, rejected = columns(rows)
    each = [max(sigmoid(alpha * (sigmoid(c) - sigmoid(r))), 0.5) for c, r in rows]
    assert pair_confidence(chosen, rejected, alpha).tolist() == pytest.approx(each, rel=1e-9)
    gap = mean(sigmoid(c) - 0.5 for c, _ in rows) - mean(sigmoid(r) - 0.5 for _, r in rows)
    batch = batch_confidence(chosen, rejected, alpha).item()
    assert batch == pytest.approx(max(sigmoid(alpha * gap), 0.5), rel=1e-9) and 0.5 <= batch < 1
    assert batch_confidence(chosen[:1], rejected[:1], alpha).item() == pytest.approx(each[0], rel=1e-12)
    turned = pair_confidence(rejected, chosen, alpha)
    assert torch.minimum(turned, pair_confidence(chosen, rejected, alpha)).tolist() == [0.5] * len(rows)


def test_no_gradient_flows_through_confidence():
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not pair_confidence(scores, -scores).requires_grad and not batch_confidence(scores, -scores).requires_grad


@given(st.lists(st.tuples(numbers, numbers, st.floats(0, 1)), min_size=1, max_size=6), st.floats(0.01, 2))
def test_confidence_dpo_by_a_loop(rows, beta):
    chosen, rejected, confidence = columns(rows)
    naive = mean(g * softplus(beta * (r - c)) + (1 - g) * softplus(beta * (c - r)) for c, r, g in rows)
    loss = confidence_dpo_loss(chosen, rejected, confidence, beta)
    assert loss.item() == pytest.approx(naive, rel=1e-9, abs=1e-12)
    turned = confidence_dpo_loss(rejected, chosen, 1 - confidence, beta)
    assert turned.item() == pytest.approx(loss.item(), rel=1e-9), "a pair is its mirror with the other confidence"
    plain = confidence_dpo_loss(chosen, rejected, torch.ones_like(chosen), beta)
    assert plain.item() == pytest.approx(mean(softplus(beta * (r - c)) for c, r, _ in rows), rel=1e-9, abs=1e-12)


@given(st.floats(0.02, 0.98), st.floats(0.05, 2), small)
def test_the_optimum_is_the_logit_of_the_confidence(confidence, beta, away):
    def at(gap: float) -> tuple[float, float]:
        """Loss and slope where beta h is `gap`."""
        ratio = torch.tensor([gap / beta], dtype=torch.float64, requires_grad=True)
        sure = torch.tensor([confidence], dtype=torch.float64)
        loss = confidence_dpo_loss(ratio, torch.zeros(1).double(), sure, beta)
        loss.backward()
        return loss.item(), ratio.grad.item()

    best, slope = at(math.log(confidence / (1 - confidence)))
    assert slope == pytest.approx(0, abs=1e-9)
    assert at(math.log(confidence / (1 - confidence)) + away)[0] >= best - 1e-12
    entropy = -confidence * math.log(confidence) - (1 - confidence) * math.log(1 - confidence)
    assert best == pytest.approx(entropy, rel=1e-9), "what is left is the label's entropy"


def test_gradient_descent_ends_at_the_logit():
    confidence, beta = torch.tensor([0.6, 0.75, 0.9]), 0.5
    ratios = torch.zeros(3, requires_grad=True)
    descent = torch.optim.LBFGS([ratios], lr=0.5, max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure():
        descent.zero_grad()
        loss = confidence_dpo_loss(ratios, torch.zeros(3), confidence, beta)
        loss.backward()
        return loss

    descent.step(closure)
    assert (beta * ratios).tolist() == pytest.approx([math.log(1.5), math.log(3), math.log(9)], abs=1e-3)


def test_a_pool_becomes_its_best_and_its_worst():
    best, worst = best_and_worst(torch.tensor([[0.1, 2.0, -1.0], [3.0, 3.0, 0.0], [1.0, 0.0, 0.0]]))
    assert (best.tolist(), worst.tolist()) == ([1, 0, 0], [2, 2, 1]), "of equal ones the first"


@given(st.lists(numbers, min_size=2, max_size=8, unique=True), st.floats(0.5, 3), small)
def test_the_pair_depends_on_the_order_of_scores_alone(scores, scale, shift):
    best, worst = best_and_worst(torch.tensor([scores], dtype=torch.float64))
    assert (scores[best], scores[worst]) == (max(scores), min(scores))
    cubes = torch.tensor([[(scale * score) ** 3 + shift for score in scores]], dtype=torch.float64)
    if len(set(cubes[0].tolist())) == len(scores):  # else rounding has made two of them one
        assert best_and_worst(cubes) == (best, worst)


def test_a_pool_without_a_pair_is_refused():
    with pytest.raises(InputError, match="row 1: all of its answers score the same, so none is better; leave it out"):
        best_and_worst(torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
    with pytest.raises(InputError, match="row 0: its answers' scores are not finite; learn the read-outs again"):
        best_and_worst(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(InputError, match="a pool of 1 answer; a pair needs two"):
        best_and_worst(torch.zeros(2, 1))
