"""Muon (Jordan et al. 2024) as torch has it, faster on a CPU: in float32, and for all matrices of one shape at once.

`torch.optim.Muon` orthogonalises one matrix after another in bfloat16, which most CPUs only emulate; for so small
matrices that is a quarter of an update.
"""

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose slope at zero is steep (Jordan et al. 2024)."""


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, A, B) -> (N, A, B), whose singular values lie near one: so many Newton-Schulz steps on each matrix."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` where every parameter has a gradient; a test compares their steps. Takes no other options."""

    def __init__(self, parameters, lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in shapes.items():
                gradient = torch.stack([parameter.grad for parameter in parameters])
                state = self.state[parameters[0]]  # one block of momentum for all of a shape
                momentum = state.setdefault("momentum", torch.zeros_like(gradient))
                momentum.lerp_(gradient, 1 - group["momentum"])
                updates = orthogonalised(gradient.lerp(momentum, group["momentum"]), group["ns_steps"])
                size = group["lr"] * math.sqrt(max(1, rows / columns))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)
