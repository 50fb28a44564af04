"""A recurrent layer (projections, convolution, recurrence, output projection) for one token in one call of our library.

The kinds of layers have modules of their own: `native_delta`, `native_state` and `native_short`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from typing import ClassVar

from torch import Tensor

from core.kernels.native_fields import address, addresses, numbers
from core.kernels.native_library import NativeLibrary

KINDS = {"delta": 0, "short": 1, "state": 2}
"""The kinds of layers, with the library's numbers: gated delta rule, short convolution, Mamba-2."""


class Memory(ctypes.Structure):
    """Mirrors `Memory` in recurrent.h."""

    _fields_ = (*addresses("kept"), *numbers("kept_rows"), *addresses("state"))

    @classmethod
    def of(cls, kept: Tensor, state: Tensor | None) -> Memory:
        """Describe the memory of a layer, `kept` (R, C) and `state` (H, ...): see `NativeRecurrentLayer`."""
        return cls(kept.data_ptr(), kept.shape[0], address(state))


class NativeRecurrentLayer:
    """The call for one layer. All tensors are on the CPU.

    `sizes`: equal for layers of equal shapes. `has_state`: whether there is a recurrence besides the convolution.
    """

    has_state: ClassVar[bool]

    def __init__(
        self, library: NativeLibrary, kind: str, fields: ctypes.Structure, held: object, sizes: Hashable
    ) -> None:
        """`kind`: one of KINDS; `held`: keeps the memory alive that the fields point to."""
        self.library = library
        self.sizes = sizes
        self.kind = KINDS[kind]
        self.address = ctypes.addressof(fields)
        self._held = fields, held

    def __call__(self, x: Tensor, kept: Tensor, state: Tensor | None) -> Tensor:
        """x (1, 1, K), contiguous, fp32 or bf16 -> (1, 1, K).

        Updates in place, both contiguous: `kept` (R, C) of x's type, the previous inputs of the convolution, and
        `state` (H, ...) of fp32, if the layer has one.
        """
        memory = Memory.of(kept, state)
        return self.library.recurrent_layer(self.kind, self.address, x, ctypes.addressof(memory))
