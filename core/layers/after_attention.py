"""What follows attention in a layer with experts, and whether it is one call of our library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from core.kernels.native_mixture import NativeMixture
from core.layers.fused_mixtures import FusedMixture


class AfterAttention:
    """What the layer's experts, and the norm behind them, make of the states that attention leaves."""

    def __init__(self, mlp: Callable[[Tensor], Any], norm: nn.Module | None) -> None:
        """`mlp`: a module with experts in it, or what stands for several."""
        self._mlp = mlp
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """x (1, M, K) -> (1, M, K)."""
        found = self._mlp(x)
        added: Tensor = found[0] if isinstance(found, tuple) else found  # some also give what their router says
        return added if self._norm is None else self._norm(added)

    def native(self, rows: int) -> NativeMixture | None:
        """What computes the experts of so many rows, without the norm; None where it is more than one call."""
        mixture = self._mixture
        return None if mixture is None else mixture.native(rows)

    def in_one_call(self) -> AfterAttention | None:
        """The same without the layer's modules but for the norm; None where it is never one call."""
        return None if self._mixture is None else AfterAttention(self._mixture, self._norm)

    @property
    def _mixture(self) -> FusedMixture | None:
        found = self._mlp if isinstance(self._mlp, FusedMixture) else vars(self._mlp).get("forward")
        return found if isinstance(found, FusedMixture) else None
