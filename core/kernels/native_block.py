"""A decoder layer with a recurrent layer in place of attention, for one token in one call of our library.

    x -> norm -> recurrent layer -> norm -> + x = s
    s -> norm -> experts, and activation(gate) * up -> linear -> norm -> + s

Each norm is optional. A layer may have experts, a gated part or both; without either, s is its result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from core.kernels.native_fields import addresses, numbers, reals, weights
from core.kernels.native_layer import ACTIVATIONS, NormFields, NormParts, norm_fields
from core.kernels.native_library import NativeLibrary, Parts, rows_of
from core.kernels.native_mixture import NativeMixture
from core.kernels.native_recurrent_layer import Memory, NativeRecurrentLayer
from core.kernels.quantized_weight import QuantizedWeight

NORMS = ("before_recurrent", "after_recurrent", "before_rest", "after_rest")


class _Block(ctypes.Structure):
    """Mirrors `Block` in block.c."""

    _fields_ = (
        *numbers("hidden", "inner", "activation", "kind"),
        *reals("residual"),
        *addresses("recurrent", "mixture"),
        *((name, NormFields) for name in NORMS),
        *weights(gate_up=2, down=1),
    )


class GatedRows(NamedTuple):
    """A gated part: gate and up are rows [begin, end) of weights (N, K), down is (K, inner)."""

    gate: tuple[QuantizedWeight, int, int]
    up: tuple[QuantizedWeight, int, int]
    down: QuantizedWeight

    @property
    def inner(self) -> int:
        """Return the columns between the products."""
        return self.down.shape[1]

    def fit(self, hidden: int) -> bool:
        """Return whether all sizes are those that the library expects."""
        rows = {end - begin for _, begin, end in (self.gate, self.up)}
        columns = {weight.shape[1] for weight, _, _ in (self.gate, self.up)}
        return rows == {self.inner} and columns == {hidden} and self.down.shape[0] == hidden

    def takes_one_input(self, library: NativeLibrary) -> bool:
        """Return whether gate and up, which are multiplied together, need the same kind of prepared input."""
        return library.alike((weight.storage for weight, _, _ in (self.gate, self.up)), 1)


@dataclass(frozen=True, eq=False)
class BlockParts:
    """The parts of a decoder layer of `hidden` columns. `norms`: as in NORMS. `residual`: factor of what is added to
    the states."""

    hidden: int
    recurrent: NativeRecurrentLayer
    norms: Sequence[NormParts | None]
    mixture: NativeMixture | None
    gated: GatedRows | None
    activation: str = "silu"
    residual: float = 1.0


class NativeBlock:
    """The call for one decoder layer, by the library of its recurrent layer. All tensors are on the CPU."""

    def __init__(self, parts: BlockParts) -> None:
        gated, mixture = parts.gated, parts.mixture
        self.hidden = parts.hidden
        self._held = parts  # keeps the memory alive that the fields point to
        self._library = parts.recurrent.library
        self._fields = _Block(
            hidden=parts.hidden, kind=parts.recurrent.kind, residual=parts.residual, recurrent=parts.recurrent.address,
            mixture=None if mixture is None else mixture.address,
            **dict(zip(NORMS, map(norm_fields, parts.norms), strict=True)),
        )  # fmt: skip
        if gated is not None:
            self._fields.inner, self._fields.activation = gated.inner, ACTIVATIONS[parts.activation]
            self._fields.gate_up, self._fields.down = Parts([gated.gate, gated.up]).fields, rows_of(gated.down)
        self._address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor, kept: Tensor, state: Tensor | None) -> Tensor:
        """x (1, 1, K) -> (1, 1, K), with the memory of the recurrent layer: see `NativeRecurrentLayer`."""
        memory = Memory.of(kept, state)
        return self._library.block(self._address, x, ctypes.addressof(memory))
