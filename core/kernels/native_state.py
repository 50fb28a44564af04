"""A Mamba-2 layer for one token, in one call of our library.

x -> gate, x, b, c, step;   x, b, c -> causal convolution -> state space step -> gate and norm -> y
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from core.kernels.native_fields import address, addresses, numbers, reals, weights
from core.kernels.native_layer import NormFields, NormParts, norm_fields
from core.kernels.native_library import NativeLibrary, rows_of
from core.kernels.native_recurrent_layer import NativeRecurrentLayer
from core.kernels.quantized_weight import QuantizedWeight


class _StateLayer(ctypes.Structure):
    """Mirrors `StateLayer` in state_layer.c."""

    _fields_ = (
        *numbers("hidden", "heads", "groups", "dim", "states", "taps", "norm_first"),
        *reals("factor"),
        *weights(given=1),
        *addresses("factors", "weight", "bias", "shift", "rate", "skip"),
        ("norm", NormFields),
        *weights(out=1),
    )


class StateSizes(NamedTuple):
    """Numbers of heads and of groups of them that share b and c, a head's columns, and its states per column."""

    heads: int
    groups: int
    dim: int
    states: int

    @property
    def values(self) -> int:
        """Return the columns of all heads."""
        return self.heads * self.dim

    @property
    def channels(self) -> int:
        """Return the columns of x, b and c, which pass through the convolution."""
        return self.values + 2 * self.groups * self.states


@dataclass(frozen=True, eq=False)
class StateParts:
    """The parts of a layer; all vectors are fp32.

    The projections are `given` (values + channels + H, K) and `out` (K, values); `taps` (taps, C) and `bias` (C,)
    belong to the convolution, `shift`, `rate` and `skip` (H,) to the recurrence. `norm`, by groups, is applied before
    the gate if `norm_first`. `factor` multiplies x, and `factors` its projections.
    """

    sizes: StateSizes
    given: QuantizedWeight
    taps: Tensor
    bias: Tensor | None
    shift: Tensor
    rate: Tensor
    skip: Tensor
    norm: NormParts | None
    out: QuantizedWeight
    factor: float = 1.0
    factors: Tensor | None = None
    norm_first: bool = False

    def fit(self) -> bool:
        """Return whether all parts have the sizes that the library expects."""
        sizes, (rows, hidden) = self.sizes, self.given.shape
        whole = rows == sizes.values + sizes.channels + sizes.heads and self.out.shape == (hidden, sizes.values)
        heads = self.shift.shape == self.rate.shape == self.skip.shape == (sizes.heads,)
        normed = self.norm is None or len(self.norm.gain) == sizes.values
        scaled = self.factors is None or self.factors.shape == (rows,)
        return whole and heads and normed and scaled and self.taps.shape[1] == sizes.channels and self._is_divided()

    def _is_divided(self) -> bool:
        """Return whether heads form whole groups."""
        return self.sizes.heads % self.sizes.groups == 0


class NativeState(NativeRecurrentLayer):
    """The call for one layer; the parts must `fit`, and the library multiply both weights. The state is (H, dim,
    states)."""

    has_state = True

    def __init__(self, library: NativeLibrary, parts: StateParts) -> None:
        vectors = (parts.factors, parts.taps, parts.bias, parts.shift, parts.rate, parts.skip)
        fields = _StateLayer(
            parts.out.shape[0], *parts.sizes, parts.taps.shape[0], parts.norm_first, parts.factor,
            rows_of(parts.given), *map(address, vectors), norm_fields(parts.norm), rows_of(parts.out),
        )  # fmt: skip
        super().__init__(library, "state", fields, parts, parts.sizes)
