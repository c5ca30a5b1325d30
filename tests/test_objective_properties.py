"""Pair objectives and Legend's functions against second, plainer implementations, and what must hold of any input."""

import math
from itertools import takewhile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srmir_lib.errors import InputError
from srmir_lib.papers.legend import BIN_VALUES, legend_margin, margin_loss, safety_direction, scale_margins
from srmir_lib.papers.pcrm import angle_similarity, length_similarity, pcrm_dpo_loss, pcrm_limit, pcrm_loss
from srmir_lib.papers.srmir import bradley_terry_loss

scores = st.floats(-20, 20)
limits = st.floats(0.1, 30)
pairs = st.lists(st.tuples(scores, scores, limits), min_size=1, max_size=6)
vectors = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=6)
texts = st.lists(st.integers(0, 3), max_size=6)


def columns(rows) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@given(pairs)
def test_losses_by_a_loop_over_pairs(rows):
    chosen, rejected, third = columns(rows)
    plain = mean(softplus(r - c) for c, r, _ in rows)
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(plain, rel=1e-9)
    wider = mean(softplus(r + m - c) for c, r, m in rows)
    assert margin_loss(chosen, rejected, third).item() == pytest.approx(wider, rel=1e-9)
    limited = mean(softplus(r - c) + softplus(c - r - limit) for c, r, limit in rows)
    assert pcrm_loss(chosen, rejected, third).item() == pytest.approx(limited, rel=1e-9)
    dpo = mean(softplus(0.1 * (r - c)) + softplus(0.1 * (c - r) - limit) for c, r, limit in rows)
    assert pcrm_dpo_loss(chosen, rejected, third, beta=0.1).item() == pytest.approx(dpo, rel=1e-9)


@given(pairs, st.floats(-10, 10))
def test_losses_see_gaps_only_and_margins_only_add(rows, shift):
    chosen, rejected, third = columns(rows)
    for loss in (bradley_terry_loss, lambda c, r: margin_loss(c, r, third), lambda c, r: pcrm_loss(c, r, third)):
        assert loss(chosen + shift, rejected + shift).item() == pytest.approx(loss(chosen, rejected).item(), rel=1e-6)
    assert margin_loss(chosen, rejected, third) >= bradley_terry_loss(chosen, rejected)
    assert pcrm_loss(chosen, rejected, third) >= bradley_terry_loss(chosen, rejected)


def test_the_dpo_form_by_hand():
    # implicit rewards 0.1 and -0.1: a gap of 0.2 under a limit of 2
    loss = pcrm_dpo_loss(torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([2.0]), beta=0.1).item()
    assert loss == pytest.approx(math.log(1 + math.exp(-0.2)) + math.log(1 + math.exp(-1.8)), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.1, 20), st.floats(0, 1), limits)
def test_limits_by_a_loop_and_more_alike_means_nearer(similar, scale, shift, cap):
    found = pcrm_limit(torch.tensor(similar, dtype=torch.float64), scale, 0.001, shift, cap)
    assert found.tolist() == pytest.approx([min(scale / (s + 0.001) + shift, cap) for s in similar], rel=1e-9)
    ordered = pcrm_limit(torch.tensor(sorted(similar), dtype=torch.float64), scale, 0.001, shift, cap)
    assert (ordered.diff() <= 0).all() and (ordered > 0).all() and (ordered <= cap).all()


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="nan of pair 1 is not positive"):
        pcrm_limit(torch.tensor([0.5, math.nan]), 1.0, 0.001, 0.0, cap=30.0)


@given(vectors, st.floats(0.1, 10))
def test_angle_similarity_by_a_loop_symmetric_and_without_scale(rows, factor):
    left, right = torch.tensor(rows[:-1]) + 0.01, torch.tensor(rows[1:]) + 0.01
    found = angle_similarity(left, right)
    for one, other, value in zip(left.tolist(), right.tolist(), found.tolist(), strict=True):
        norms = math.hypot(*one) * math.hypot(*other)
        if norms > 1e-3:
            cosine = sum(a * b for a, b in zip(one, other, strict=True)) / norms
            assert value == pytest.approx(1 - math.acos(max(-1.0, min(1.0, cosine))) / math.pi, abs=2e-3)
    torch.testing.assert_close(angle_similarity(right, left), found)
    torch.testing.assert_close(angle_similarity(factor * left, right), found, atol=2e-3, rtol=0)
    assert ((found >= 0) & (found <= 1)).all()


@given(texts, texts, texts)
def test_length_similarity_by_a_loop_and_blind_to_what_is_shared(common, left, right):
    same = len(list(takewhile(lambda both: both[0] == both[1], zip(left, right, strict=False))))
    short, long = sorted((len(left) - same, len(right) - same))
    expected = short / long if long else 1.0
    for chosen, rejected in ((left, right), (right, left), (common + left, common + right)):
        assert length_similarity([chosen], [rejected]).item() == pytest.approx(expected)


@given(vectors, st.randoms(use_true_random=False), st.floats(0.1, 10))
def test_the_direction_has_unit_length_and_knows_no_order(rows, random, factor):
    harmful = torch.tensor(rows)
    safe = harmful.flip(0) * 0.5 + 1.0
    if (safe - harmful).mean(dim=0).norm() < 1e-2:
        return
    direction = safety_direction(safe, harmful)
    assert direction.norm().item() == pytest.approx(1, abs=1e-5)
    order = random.sample(range(len(rows)), len(rows))
    torch.testing.assert_close(safety_direction(safe[order], harmful[order]), direction, atol=1e-4, rtol=0)
    torch.testing.assert_close(safety_direction(harmful, safe), -direction, atol=1e-5, rtol=0)
    torch.testing.assert_close(safety_direction(factor * safe, factor * harmful), direction, atol=1e-4, rtol=0)
    naive = [mean(s[at] - h[at] for s, h in zip(safe.tolist(), harmful.tolist(), strict=True)) for at in range(3)]
    assert direction.tolist() == pytest.approx([value / math.hypot(*naive) for value in naive], abs=1e-4)


@given(vectors, vectors)
def test_margins_by_a_loop_change_sign_with_the_pair(left, right):
    count = min(len(left), len(right))
    chosen, rejected = torch.tensor(left[:count]), torch.tensor(right[:count])
    direction = torch.tensor([2.0, -1.0, 0.5]) / math.hypot(2.0, 1.0, 0.5)
    found = legend_margin(chosen, rejected, direction)
    for one, other, value in zip(chosen.tolist(), rejected.tolist(), found.tolist(), strict=True):
        along = sum((a - b) * v for a, b, v in zip(one, other, direction.tolist(), strict=True))
        assert value == pytest.approx(along, abs=1e-4)
    torch.testing.assert_close(legend_margin(rejected, chosen, direction), -found, atol=1e-5, rtol=0)


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.floats(0.1, 5), st.sampled_from(["keep", "clip", "flip"])
)
def test_scaled_margins_keep_their_order_and_their_size(values, size, negative):
    margins = torch.tensor(values)
    kept = {"keep": margins, "clip": margins.clamp(min=0), "flip": margins.abs()}[negative]
    if kept.abs().max() < 1e-3:
        return
    unit = scale_margins(margins, "unit", negative, size)
    assert unit.square().mean().sqrt().item() == pytest.approx(size, rel=1e-4)
    torch.testing.assert_close(unit * kept.abs().max(), kept * unit.abs().max(), atol=1e-3, rtol=1e-3)
    binned = scale_margins(margins, "binned", negative, size)
    assert all(any(math.isclose(value, size * step, abs_tol=1e-5) for step in BIN_VALUES) for value in binned.tolist())
    order = kept.argsort()
    assert (binned[order].diff() >= -1e-6).all(), "a wider margin never lands in a lower bin"
