"""Experts parallel to a layer's dense MLP, each with its own norms, as in Gemma 4.

s -> norm -> MLP -> norm ; s -> router, s -> norm -> chosen experts -> norm ; the sum of both
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NORMS = (
    "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm", "post_feedforward_layernorm_1",
)  # fmt: skip
"""Norms before and after the chosen experts, and before and after the dense MLP."""
OTHERS = ("router", "experts", *NORMS)
"""The modules parallel to the dense MLP, and the norms."""
TOGETHER = "hetegen_beside"
"""The attribute of a layer with the module that computes all of them in one call."""


class ExpertsBeside:
    """Computes both parts with the layer's own modules."""

    def __init__(self, layer: Any) -> None:
        self._parts = layer.mlp, layer.router, layer.experts
        self._norms = [getattr(layer, name) for name in NORMS]

    def __call__(self, x: Tensor) -> Tensor:
        """x (1, M, K) -> (1, M, K)."""
        before_chosen, after_chosen, before_every, after_every = self._norms
        mlp, router, experts = self._parts
        rows = x.reshape(-1, x.shape[-1])
        _, shares, chosen = router(rows)
        found: Tensor = after_chosen(experts(before_chosen(rows), chosen, shares)).view(x.shape)
        return torch.add(after_every(mlp(before_every(x))), found)


def stand_in(layer: nn.Module) -> bool:
    """Return whether the layer has such experts."""
    return layer._modules.keys() >= {"mlp", *OTHERS}
