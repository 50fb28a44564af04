"""A short convolution layer for one token, in one call of our library.

x -> b, c, x;   b x -> causal convolution -> times c -> y
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor

from core.kernels.native_fields import address, addresses, numbers, weights
from core.kernels.native_library import NativeLibrary, rows_of
from core.kernels.native_recurrent_layer import NativeRecurrentLayer
from core.kernels.quantized_weight import QuantizedWeight


class _ShortLayer(ctypes.Structure):
    """Mirrors `ShortLayer` in short_layer.c."""

    _fields_ = (
        *numbers("hidden", "channels", "taps"),
        *weights(given=1),
        *addresses("weight", "bias"),
        *weights(out=1),
    )


@dataclass(frozen=True, eq=False)
class ShortParts:
    """The parts of a layer: the projections `given` (3 C, K) and `out` (K, C), and `taps` (taps, C) and `bias` (C,) of
    the convolution, in fp32."""

    given: QuantizedWeight
    taps: Tensor
    bias: Tensor | None
    out: QuantizedWeight

    def fit(self) -> bool:
        """Return whether all parts have the sizes that the library expects."""
        (rows, hidden), (out_rows, channels) = self.given.shape, self.out.shape
        return rows == 3 * channels and out_rows == hidden and self.taps.shape[1] == channels


class NativeShort(NativeRecurrentLayer):
    """The call for one layer; the parts must `fit`, and the library multiply both weights."""

    has_state = False

    def __init__(self, library: NativeLibrary, parts: ShortParts) -> None:
        hidden, channels = parts.out.shape
        taps = parts.taps.shape[0]
        fields = _ShortLayer(
            hidden, channels, taps, rows_of(parts.given), parts.taps.data_ptr(), address(parts.bias),
            rows_of(parts.out),
        )  # fmt: skip
        super().__init__(library, "short", fields, parts, (hidden, channels, taps))
