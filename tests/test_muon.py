"""The lab's Muon takes the steps of torch's, which are rounded to bfloat16; ours are not."""

import pytest
import torch

from srmir_lib.lab.muon import Muon, orthogonalised

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 8)]


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_steps_are_those_of_torch_up_to_its_rounding():
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.95}
    optimisers = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for start, one, other in zip(parameters(), ours, theirs, strict=True):
        moved = (other - start).norm()
        assert (one - other).norm() < 0.02 * moved, "bfloat16 keeps eight bits, so two per cent are a wide berth"
        assert moved > 0.1, "a step must move the weights"


def test_a_single_value_goes_through_the_quintic_by_hand():
    value = orthogonalised(torch.tensor([[[5.0]]]), steps=1).item()
    assert value == pytest.approx(3.4445 - 4.7750 + 2.0315, abs=1e-5), "5 is scaled to 1, then a + b + c"


def test_singular_values_come_near_to_one_whichever_way_a_matrix_lies():
    generator = torch.Generator().manual_seed(2)
    for shape in ((2, 24, 8), (2, 8, 24)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=generator)))
        assert values.min() > 0.5 and values.max() < 1.3
