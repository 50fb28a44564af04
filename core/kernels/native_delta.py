"""A layer of linear attention by the gated delta rule, for one token, in one call of our library.

x -> q, k, v, gate, b, a;   q, k, v -> convolution over time -> delta rule (beta of b, decay of a) -> norm x gate -> y
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.native_abi import PART_FIELDS
from core.kernels.native_layer import NormFields, NormParts, norm_fields
from core.kernels.native_library import NativeLibrary, Parts
from core.kernels.quantized_weight import QuantizedWeight

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _DeltaLayer(ctypes.Structure):
    """`DeltaLayer` of delta_layer.c."""

    _fields_ = (
        *((name, _INT) for name in ("hidden", "key_heads", "value_heads", "key_dim", "value_dim", "taps", "parts")),
        *((name, _ADDRESS) for name in ("fields", "places", "weight", "bias", "rate", "shift")),
        ("norm", NormFields),
        ("out", _INT * PART_FIELDS),
    )


class _Memory(ctypes.Structure):
    """`Memory` of delta_layer.c."""

    _fields_ = (("kept", _ADDRESS), ("kept_rows", _INT), ("state", _ADDRESS))


class DeltaSizes(NamedTuple):
    """Heads of keys (and queries) and of values, and their columns."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def keys(self) -> int:
        """Columns of all heads' keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Columns of all heads' values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Columns of q, k and v, which the convolution goes over."""
        return 2 * self.keys + self.values


class Rows(NamedTuple):
    """Rows [begin, end) of a weight (N, K), whose results begin at `place` among q, k, v, gate, b and a."""

    weight: QuantizedWeight
    begin: int
    end: int
    place: int


@dataclass(frozen=True, eq=False)
class DeltaParts:
    """What a layer consists of. `taps` (taps, C) and `bias` (C,) of the convolution, `rate` and `shift` (VH,) of
    what is forgotten, all of fp32; `norm` of each head's result; `out` (K, V) the last product."""

    sizes: DeltaSizes
    rows: Sequence[Rows]
    taps: Tensor
    bias: Tensor | None
    rate: Tensor
    shift: Tensor
    norm: NormParts
    out: QuantizedWeight

    def fit(self) -> bool:
        """Whether they are of the sizes that the library takes for granted."""
        sizes, width = self.sizes, self.sizes.channels + self.sizes.values + 2 * self.sizes.value_heads
        made = sorted((one.place, one.place + one.end - one.begin) for one in self.rows)
        whole = [begin for begin, _ in made] + [width] == [0] + [end for _, end in made]
        alike = {one.weight.shape[1] for one in self.rows} == {self.out.shape[0]} and self.out.shape[1] == sizes.values
        heads = self.rate.shape == self.shift.shape == (sizes.value_heads,)
        vectors = self.taps.shape[1] == sizes.channels and len(self.norm.gain) == sizes.value_dim
        return whole and alike and heads and vectors and sizes.value_heads % sizes.key_heads == 0


class NativeDelta:
    """One layer's call. All tensors are on the CPU; the parts must `fit`, and the library multiply all weights."""

    def __init__(self, library: NativeLibrary, parts: DeltaParts) -> None:
        self.library = library
        self.sizes = parts.sizes
        products = Parts([(one.weight, one.begin, one.end) for one in parts.rows])
        places = (_INT * len(parts.rows))(*(one.place for one in parts.rows))
        self._held = parts, products, places  # their addresses are in the fields
        self._fields = _DeltaLayer(
            parts.out.shape[0], *parts.sizes, parts.taps.shape[0], len(parts.rows), ctypes.addressof(products.fields),
            ctypes.addressof(places), parts.taps.data_ptr(), None if parts.bias is None else parts.bias.data_ptr(),
            parts.rate.data_ptr(), parts.shift.data_ptr(), norm_fields(parts.norm),
            Parts([(parts.out, 0, parts.out.shape[0])]).fields,
        )  # fmt: skip
        self._address = ctypes.addressof(self._fields)

    def __call__(self, x: Tensor, kept: Tensor, state: Tensor) -> Tensor:
        """x (1, 1, K), contiguous, of fp32 or bf16 -> (1, 1, K). `kept` (R, C) of its type, the convolution's inputs
        before it, and `state` (VH, K, V) of fp32, both contiguous, are brought up to date."""
        memory = _Memory(kept.data_ptr(), kept.shape[0], state.data_ptr())
        out = torch.empty_like(x)
        self.library.delta_layer(self._address, x, ctypes.addressof(memory), out)
        return out
