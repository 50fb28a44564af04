"""The Muon optimizer in fp32. Torch's own uses bf16, which takes fifty times as long on processors without it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM, WEIGHT_DECAY = 0.95, 0.1
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Moves matrices along their orthogonalised momentum, with AdamW's step size."""

    def __init__(self, matrices: Iterable[Tensor], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                weight.mul_(1 - group["lr"] * WEIGHT_DECAY)
                size = 0.2 * max(weight.shape) ** 0.5
                weight.sub_(orthogonal(weight.grad.lerp(momentum, MOMENTUM)), alpha=group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate U V^T of the matrix's SVD (rows, columns) by Newton-Schulz iteration."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
