"""A mixture-of-experts block for few rows of input as one native call: routing, routed experts, and a shared expert."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from core.kernels.native_experts import NativeExperts
from core.kernels.native_fields import addresses, numbers, weights
from core.kernels.native_layer import ACTIVATIONS, NormFields, NormParts, norm_fields
from core.kernels.native_library import Parts
from core.kernels.native_router import NativeRouter
from core.kernels.quantized_weight import QuantizedWeight


class _Mixture(ctypes.Structure):
    """Mirrors `Mixture` in mixture.c."""

    _fields_ = (
        *addresses("router", "experts"),
        *numbers("scored", "choices", "hidden", "scaled", "inner", "activation"),
        *weights(gate_up=2, down=1),
        *addresses("door"),
        ("norms", NormFields * 4),
    )


@dataclass(frozen=True, eq=False)
class SharedExpert:
    """An expert that every row goes through: gate and up (N, K) take the same kind of prepared input, down is (K, N).
    `door` (1, K): the result is multiplied with the sigmoid of its product."""

    activation: str
    gate: QuantizedWeight
    up: QuantizedWeight
    down: QuantizedWeight
    door: QuantizedWeight | None = None

    def fit(self, columns: int) -> bool:
        """Return whether shapes are those that the library assumes."""
        inner = self.gate.shape[0]
        sized = self.gate.shape == self.up.shape == (inner, columns) and self.down.shape == (columns, inner)
        return sized and (self.door is None or self.door.shape == (1, columns))


class NativeMixture:
    """The native call of one block, by the experts' library. Inputs are contiguous, of `dtype`, at most MOST_FEW
    rows."""

    def __init__(
        self, router: NativeRouter, experts: NativeExperts, shared: SharedExpert | None = None,
        norms: Sequence[NormParts | None] = (None,) * 4, *, scaled: bool = False,
    ) -> None:  # fmt: skip
        """`norms`: before and after the routed experts, before and after the shared expert. `scaled`: each row has one
        expert, and is multiplied by its share before instead of afterwards."""
        self.library, self.dtype = experts.library, experts.dtype
        door = None if shared is None or shared.door is None else Parts([(shared.door, 0, 1)])
        self._held = router, experts, shared, door, norms  # keeps alive what the fields point to
        self._fields = _Mixture(
            router.address, experts.address, router.experts, router.routing.choices, experts.hidden, scaled
        )
        if shared is not None:
            inner, hidden = shared.gate.shape[0], experts.hidden
            self._fields.inner, self._fields.activation = inner, ACTIVATIONS[shared.activation]
            self._fields.gate_up = Parts([(shared.gate, 0, inner), (shared.up, 0, inner)]).fields
            self._fields.down = Parts([(shared.down, 0, hidden)]).fields
            self._fields.door = ctypes.addressof(door.fields) if door else None
        self._fields.norms = (NormFields * 4)(*map(norm_fields, norms))
        self.address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the block's output (M, K) for x (M, K)."""
        return self.library.mixture(self.address, x)
