"""The part of a layer after attention, with experts, and whether our library computes it in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from core.kernels.native_mixture import NativeMixture
from core.layers.fused_mixtures import FusedMixture


class AfterAttention:
    """Applies the layer's experts, and the norm after them, to the output of attention."""

    def __init__(self, mlp: Callable[[Tensor], Any], norm: nn.Module | None) -> None:
        """`mlp`: a module with experts, or a stand-in for several modules."""
        self._mlp = mlp
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """x (1, M, K) -> (1, M, K)."""
        found = self._mlp(x)
        added: Tensor = found[0] if isinstance(found, tuple) else found  # some also return router scores
        return added if self._norm is None else self._norm(added)

    def native(self, rows: int) -> NativeMixture | None:
        """Return the native call for the experts of so many rows, without the norm; None if it takes several calls."""
        mixture = self._mixture
        return None if mixture is None else mixture.native(rows)

    def in_one_call(self) -> AfterAttention | None:
        """Return this with the fused mixture in place of the layer's modules, except the norm; None if there is
        none."""
        return None if self._mixture is None else AfterAttention(self._mixture, self._norm)

    @property
    def _mixture(self) -> FusedMixture | None:
        found = self._mlp if isinstance(self._mlp, FusedMixture) else vars(self._mlp).get("forward")
        return found if isinstance(found, FusedMixture) else None
