"""Products of the inputs of several attention heads with a weight each, in one call of our library, for few rows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from core.kernels.native_abi import format_number
from core.kernels.native_fields import addresses, numbers
from core.kernels.native_library import NativeLibrary, Parts
from core.kernels.quantized_weight import QuantizedWeight


class _Heads(ctypes.Structure):
    """Mirrors `Heads` in heads.c."""

    _fields_ = (
        *numbers("heads", "columns", "format"),
        *addresses("fields"),
    )


class NativeHeads:
    """The weights (N, K) of all heads, on the CPU, of one shape and one storage that the library multiplies."""

    def __init__(self, library: NativeLibrary, weights: Sequence[QuantizedWeight]) -> None:
        first = weights[0]
        self._library = library
        self._parts = Parts.whole(weights)  # their addresses are in the fields
        self._fields = _Heads(
            len(weights), first.shape[1], format_number(first.storage), ctypes.addressof(self._parts.fields)
        )
        self.address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x (1, H, M, K) -> out (1, H, M, N), of x's type; the last dimension of both is contiguous."""
        self._library.heads(self.address, x, out)
