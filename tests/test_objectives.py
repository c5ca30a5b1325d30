"""Losses against numbers worked by hand, and against what TRL's `RewardTrainer` computes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srmir_lib.errors import InputError
from srmir_lib.papers.legend import margin_loss
from srmir_lib.papers.pcrm import PCRM_CONSTANTS, angle_similarity, length_similarity, pcrm_limit, pcrm_loss
from srmir_lib.papers.srmir import bradley_terry_loss

CHOSEN, REJECTED = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])


def test_bradley_terry_by_hand():
    # gaps 1 and -2: (ln(1 + e^-1) + ln(1 + e^2)) / 2
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert bradley_terry_loss(CHOSEN, REJECTED).item() == pytest.approx(expected, abs=1e-6)
    assert bradley_terry_loss(CHOSEN, CHOSEN).item() == pytest.approx(math.log(2), abs=1e-6)


def test_margin_moves_the_gap_that_costs_ln_2():
    gaps = CHOSEN - REJECTED
    assert margin_loss(CHOSEN, REJECTED, gaps).item() == pytest.approx(math.log(2), abs=1e-6)
    assert margin_loss(CHOSEN, REJECTED, torch.zeros(2)) == bradley_terry_loss(CHOSEN, REJECTED)
    # gap 1, margin 0.5: ln(1 + e^-0.5)
    one = margin_loss(CHOSEN[:1], REJECTED[:1], torch.tensor([0.5])).item()
    assert one == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-6)


def test_a_margin_pushes_harder():
    scores = torch.tensor([2.0], requires_grad=True)
    plain = torch.autograd.grad(bradley_terry_loss(scores, torch.zeros(1)), scores)[0]
    pushed = torch.autograd.grad(margin_loss(scores, torch.zeros(1), torch.tensor([1.0])), scores)[0]
    assert pushed < plain < 0


@pytest.mark.parametrize("margin", [None, [0.3, -0.2, 1.5]])
def test_both_losses_are_what_the_trl_trainer_minimises(tiny_model, tmp_path, margin):
    from trl import RewardTrainer
    from trl_loss import trainer_loss

    columns = {"chosen_ids": [[7, 8, 9, 1]] * 3, "rejected_ids": [[9, 1], [8, 8, 1], [30, 40, 50, 60, 1]]}
    columns |= {} if margin is None else {"margin": margin}
    loss, chosen, rejected, batch = trainer_loss(RewardTrainer, tiny_model, columns, tmp_path)
    ours = bradley_terry_loss(chosen, rejected) if margin is None else margin_loss(chosen, rejected, batch["margin"])
    assert loss == pytest.approx(ours.item(), abs=1e-6), "TRL's loss is no longer the one this library displays"


def test_pcrm_limit_by_hand():
    # length, s = 1: 10 / 1.001 - 5; s = 0.5: 10 / 0.501 - 5; cosine, s = 1: 20 / 1.001 - 15; s = 0 is capped
    length = pcrm_limit(torch.tensor([1.0, 0.5, 0.0]), *PCRM_CONSTANTS["length"], cap=30.0)
    assert length.tolist() == pytest.approx([4.990010, 14.960080, 30.0], abs=1e-4)
    cosine = pcrm_limit(torch.tensor([1.0]), *PCRM_CONSTANTS["cosine"], cap=30.0)
    assert cosine.item() == pytest.approx(4.980020, abs=1e-4)


def test_a_limit_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="-4 of pair 1 is not positive"):
        pcrm_limit(torch.tensor([0.1, 1.0]), 1.0, 0.0, -5.0, cap=30.0)


def test_pcrm_loss_by_hand():
    # gap 1, limit 3: ln(1 + e^-1) + ln(1 + e^-2)
    loss = pcrm_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0])).item()
    assert loss == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)), abs=1e-6)


@given(st.floats(0.5, 30), st.floats(-20, 40))
def test_pcrm_loss_is_convex_and_least_at_half_the_limit(limit, gap):
    def slope(at: float) -> float:
        gap = torch.tensor([at], dtype=torch.float64, requires_grad=True)
        pcrm_loss(gap, torch.zeros(1, dtype=torch.float64), torch.tensor([limit], dtype=torch.float64)).backward()
        return gap.grad.item()

    assert slope(limit / 2) == pytest.approx(0, abs=1e-12)
    assert slope(gap) <= slope(gap + 0.5) + 1e-12, "a convex function's slope never falls"


def test_length_similarity_by_hand():
    # the same first two tokens; then one token against three
    assert length_similarity([[1, 2, 3]], [[1, 2, 4, 5, 6]]).tolist() == pytest.approx([1 / 3])
    assert length_similarity([[1, 2], [1], [7]], [[1, 2], [1, 5], [8, 9]]).tolist() == [1.0, 0.0, 0.5]


def test_angle_similarity_by_hand():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    found = torch.cat([angle_similarity(east, other) for other in (3 * east, north, -east)])
    assert found.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)
