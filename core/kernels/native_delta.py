"""A gated delta rule layer (linear attention) for one token, in one call of our library.

x -> q, k, v, gate, b, a;   q, k, v -> causal convolution -> delta rule (beta from b, decay from a) -> norm x gate -> y
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from core.kernels.native_fields import INT, address, addresses, numbers, weights
from core.kernels.native_layer import NormFields, NormParts, norm_fields
from core.kernels.native_library import NativeLibrary, Parts, rows_of
from core.kernels.native_recurrent_layer import NativeRecurrentLayer
from core.kernels.quantized_weight import QuantizedWeight


class _DeltaLayer(ctypes.Structure):
    """Mirrors `DeltaLayer` in delta_layer.c."""

    _fields_ = (
        *numbers("hidden", "key_heads", "value_heads", "key_dim", "value_dim", "taps", "parts"),
        *addresses("fields", "places", "weight", "bias", "rate", "shift"),
        ("norm", NormFields),
        *weights(out=1),
    )


class DeltaSizes(NamedTuple):
    """Numbers of key (and query) heads and of value heads, and their columns."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def keys(self) -> int:
        """Return the columns of all heads' keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Return the columns of all heads' values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Return the columns of q, k and v, which pass through the convolution."""
        return 2 * self.keys + self.values


class Rows(NamedTuple):
    """Rows [begin, end) of a weight (N, K), whose results start at `place` in the sequence q, k, v, gate, b, a."""

    weight: QuantizedWeight
    begin: int
    end: int
    place: int


@dataclass(frozen=True, eq=False)
class DeltaParts:
    """The parts of a layer.

    `taps` (taps, C) and `bias` (C,) of the convolution, and `rate` and `shift` (VH,) of the decay, are fp32. `norm` is
    applied to each head's result; `out` (K, V) is the output projection.
    """

    sizes: DeltaSizes
    rows: Sequence[Rows]
    taps: Tensor
    bias: Tensor | None
    rate: Tensor
    shift: Tensor
    norm: NormParts
    out: QuantizedWeight

    def fit(self) -> bool:
        """Return whether all parts have the sizes that the library expects."""
        sizes, width = self.sizes, self.sizes.channels + self.sizes.values + 2 * self.sizes.value_heads
        made = sorted((one.place, one.place + one.end - one.begin) for one in self.rows)
        whole = [begin for begin, _ in made] + [width] == [0] + [end for _, end in made]
        alike = {one.weight.shape[1] for one in self.rows} == {self.out.shape[0]} and self.out.shape[1] == sizes.values
        heads = self.rate.shape == self.shift.shape == (sizes.value_heads,)
        vectors = self.taps.shape[1] == sizes.channels and len(self.norm.gain) == sizes.value_dim
        return whole and alike and heads and vectors and sizes.value_heads % sizes.key_heads == 0


class NativeDelta(NativeRecurrentLayer):
    """The call for one layer. All tensors are on the CPU; the parts must `fit`, and the library multiply all
    weights. The state is (VH, K, V)."""

    has_state = True

    def __init__(self, library: NativeLibrary, parts: DeltaParts) -> None:
        products = Parts([(one.weight, one.begin, one.end) for one in parts.rows])
        places = (INT * len(parts.rows))(*(one.place for one in parts.rows))
        fields = _DeltaLayer(
            parts.out.shape[0], *parts.sizes, parts.taps.shape[0], len(parts.rows), ctypes.addressof(products.fields),
            ctypes.addressof(places), parts.taps.data_ptr(), address(parts.bias), parts.rate.data_ptr(),
            parts.shift.data_ptr(), norm_fields(parts.norm), rows_of(parts.out),
        )  # fmt: skip
        super().__init__(library, "delta", fields, (parts, products, places), parts.sizes)
