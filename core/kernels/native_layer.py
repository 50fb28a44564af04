"""A decoder layer of the most common architecture in two native calls, for few rows of input.

    x -> norm -> q, k, v -> (norms of q and k) -> rotary embedding -> attention -> linear -> norm -> + x = s
    s -> norm -> activation(gate) * up -> linear -> norm -> + s = t
    t -> activation(gate) * side input -> linear -> norm -> + t

Each norm is optional, as is the third line (Gemma's inputs per layer). Where the second line differs (experts), the
second call stops before it and returns s and its norm. Between the two calls the caller appends keys and values to its
cache. Without this, a token makes dozens of calls per layer; with a billion parameters, the time between products is a
fifth of the total.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.native_fields import ADDRESS, address, addresses, numbers, reals, weights
from core.kernels.native_library import AttentionCall, NativeLibrary, rows_of
from core.kernels.quantized_weight import QuantizedWeight

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
NORMS = 8
LAYER_TYPES = (torch.float32, torch.bfloat16)


class NormFields(ctypes.Structure):
    """Mirrors `NormOf` in norms.h."""

    _fields_ = (*addresses("gain"), *reals("eps"), *numbers("rounded", "columns", "centred"))


class _Layer(ctypes.Structure):
    """Mirrors `Layer` in layer.c."""

    _fields_ = (
        *numbers("hidden", "heads", "kv_heads", "dim", "inner", "activation"),
        *numbers("turned", "neighbours", "turns_first", "turns_exactly", "gated", "head_gated", "parallel"),
        *numbers("borrows", "side"),
        *reals("residual", "factor", "softcap"),
        *weights(qkv=4, out=1, gate_up=2, down=1, side_gate=1, side_out=1),
        *(("biases", ADDRESS * 4), ("norms", NormFields * NORMS)),
    )


@dataclass(frozen=True, eq=False)
class NormParts:
    """An RMS norm with the arguments of `NativeLibrary.rms_norm`; `centred`: a layer norm."""

    gain: Tensor
    eps: float
    rounded: bool
    centred: bool = False


class Turning(NamedTuple):
    """How the rotary embedding rotates: `columns` of a head (None = all), neighbouring ones together or those half of
    them apart, in the states' type or in fp32 (`exact`), after the norms of q and k or before them (`first`).
    `in_order`: neighbouring columns have angles in the order of columns."""

    columns: int | None = None
    neighbours: bool = False
    exact: bool = False
    first: bool = False
    in_order: bool = False


USUAL_TURNING = Turning()


class SideWeights(NamedTuple):
    """The weights around a side input of P columns: `gate` (P, K) and `out` (K, P)."""

    gate: QuantizedWeight
    out: QuantizedWeight


@dataclass(frozen=True, eq=False)
class LayerParts:
    """The parts of a decoder layer.

    `dim`: columns of a head. `residual`: factor of what attention and the gated part add. `factor`: factor of the
    layer's result. `softcap`: bound of the attention's scores, 0 = none.

    `weights`: q, k, v and output, then gate, up and down unless the caller computes what follows attention; their
    storages take the same kind of prepared input for few rows. If q has twice as many rows as the output has columns,
    each head is followed by a gate, whose sigmoid multiplies that head's attention; `head_gates` (H, K) makes one
    number a head for that. `biases` (N,): of the first four weights, in the layer's type. `norms`: before and after
    attention, before and after the gated part, then of q, k and v, per head or over all heads, and after the side part.

    `parallel`: the gated part reads what attention reads. `lent_heads`: heads of the keys and values that the layer
    reads from another one's cache; then k and v have no rows.
    """

    dim: int
    activation: str
    weights: Sequence[QuantizedWeight]
    biases: Sequence[Tensor | None]
    norms: Sequence[NormParts | None]
    residual: float = 1.0
    turning: Turning = USUAL_TURNING
    factor: float = 1.0
    softcap: float = 0.0
    head_gates: QuantizedWeight | None = None
    lent_heads: int = 0
    side: SideWeights | None = None
    parallel: bool = False

    @property
    def kv_heads(self) -> int:
        """Return the heads of the keys and values that attention reads."""
        return self.lent_heads or self.weights[1].shape[0] // self.dim

    @property
    def query_columns(self) -> int:
        """Return the columns of all heads' queries."""
        return self.weights[3].shape[1]

    @property
    def gated(self) -> bool:
        """Return whether a gate follows each head's query."""
        return self.weights[0].shape[0] == 2 * self.query_columns

    def fit(self, dtype: torch.dtype) -> bool:
        """Return whether shapes and types are those that the library assumes."""
        shapes = [weight.shape for weight in self.weights]
        (made, hidden), (kv_rows, _), rows, dim = shapes[0], shapes[1], self.query_columns, self.dim
        expected = [(2 * rows if self.gated else rows, hidden), (kv_rows, hidden), (kv_rows, hidden), (hidden, rows)]
        if len(shapes) > len(expected):
            inner = shapes[4][0]
            expected += [(inner, hidden), (inner, hidden), (hidden, inner)]
        whole_heads = dim % 2 == 0 and rows % dim == kv_rows % dim == 0 and rows // dim % self.kv_heads == 0
        gains = [None if norm is None else norm.gain for norm in self.norms]
        vectors = [
            *zip(self.biases, (made, kv_rows, kv_rows, hidden), strict=True),
            *((gain, hidden) for gain in (*gains[:4], *gains[7:])),
        ]
        sized = all(vector is None or vector.shape == (length,) for vector, length in vectors)
        typed = dtype in LAYER_TYPES and all(bias is None or bias.dtype is dtype for bias in self.biases)
        by_head = [
            norm is None or len(norm.gain) in (dim, n)
            for norm, n in zip(self.norms[4:7], (rows, kv_rows, kv_rows), strict=True)
        ]
        heads = self.head_gates is None or self.head_gates.shape == (rows // dim, hidden)
        return shapes == expected and whole_heads and sized and typed and heads and all(by_head) and self._extras_fit()

    def _extras_fit(self) -> bool:
        """Return whether a side input follows a gated part, which alone may be parallel, and borrowed states replace
        plain projections."""
        plain = not self.lent_heads or (self.head_gates is None and self.weights[1].shape[0] == 0)
        if self.side is None or len(self.weights) == 4:
            return plain and self.side is None and (len(self.weights) > 4 or not self.parallel)
        columns, hidden = self.side.gate.shape
        return plain and self.side.out.shape == (hidden, columns) and hidden == self.weights[0].shape[1]


class NativeLayer:
    """The two native calls of one layer. All tensors are of `dtype` and on the CPU; the parts must `fit` it."""

    def __init__(self, library: NativeLibrary, parts: LayerParts, dtype: torch.dtype) -> None:
        self.dim = parts.dim
        self.heads, self.kv_heads = parts.query_columns // parts.dim, parts.kv_heads
        self.side = 0 if parts.side is None else parts.side.gate.shape[0]
        self.dtype = dtype
        self.library = library
        self.turned = parts.dim if parts.turning.columns is None else parts.turning.columns
        self.factor = parts.factor
        self.sizes = parts.weights[0].shape[1], self.heads, self.kv_heads, parts.dim, self.turned
        self.parts = parts  # also keeps alive what the fields point to
        self._fields = _fields(parts, self.heads, self.kv_heads, self.turned)
        self.address = ctypes.addressof(self._fields)
        gates = parts.query_columns if parts.gated else 0
        of_heads = 0 if parts.head_gates is None else self.heads
        self._made_heads = parts.weights[1].shape[0] // parts.dim
        made = self._made_heads * parts.dim
        self._widths = [parts.query_columns, gates, made, made, of_heads]

    def begin(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (1, H, M, dim), k and v (1, KVH, M, dim) of x (1, M, K); cos and sin (1, M, turned) are of x's type
        or fp32, all contiguous. k and v have no heads if another layer's are read. `end` finds the gates, if there are
        any, in the same memory."""
        m = x.shape[1]
        qkv = torch.empty(m * sum(self._widths), dtype=self.dtype)
        self.library.layer_begin(self.address, x, cos, sin, qkv)
        q, _, k, v, _ = qkv.split_with_sizes([m * width for width in self._widths])
        k, v = (self._by_head(one, m, self._made_heads) for one in (k, v))
        return self._by_head(q, m, self.heads), k, v

    def end(self, x: Tensor, call: AttentionCall, side: Tensor | None = None) -> Tensor:
        """Return the layer's output (1, M, K) for the x (1, M, K) given to `begin`, the attention of its rows, and its
        side input (1, M, P)."""
        return self.library.layer_end(self.address, x, call, side)

    def attend(self, x: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Compute only the attention part of `end`: return x plus the attention output, and its norm, (1, M, K)
        each."""
        return self.library.layer_attend(self.address, x, call)

    def _by_head(self, states: Tensor, m: int, heads: int) -> Tensor:
        return states.view(1, m, heads, self.dim).transpose(1, 2)


def _fields(parts: LayerParts, heads: int, kv_heads: int, turned: int) -> _Layer:
    q, k, v, out, *gated = parts.weights
    fields = _Layer(hidden=q.shape[1], heads=heads, kv_heads=kv_heads, dim=parts.dim, residual=parts.residual)
    fields.turned, fields.neighbours = turned, parts.turning.neighbours + parts.turning.in_order
    fields.gated, fields.parallel = parts.gated, parts.parallel
    fields.turns_first, fields.turns_exactly = parts.turning.first, parts.turning.exact
    fields.factor, fields.softcap, fields.borrows = parts.factor, parts.softcap, bool(parts.lent_heads)
    made = rows_of(*(one for one in (q, k, v, parts.head_gates) if one is not None))
    fields.qkv[: len(made)], fields.out = [*made], rows_of(out)
    fields.head_gated = parts.head_gates is not None
    fields.biases, fields.norms = _addresses(parts.biases), (NormFields * NORMS)(*map(norm_fields, parts.norms))
    if parts.side is not None:
        fields.side, fields.side_gate = parts.side.gate.shape[0], rows_of(parts.side.gate)
        fields.side_out = rows_of(parts.side.out)
    if gated:
        gate, up, down = gated
        fields.inner, fields.activation = gate.shape[0], ACTIVATIONS[parts.activation]
        fields.gate_up, fields.down = rows_of(gate, up), rows_of(down)
    return fields


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ADDRESS * len(tensors))(*map(address, tensors))


def norm_fields(norm: NormParts | None) -> NormFields:
    """Return the library's fields of a norm; the caller must keep its gain alive."""
    if norm is None:
        return NormFields()
    return NormFields(norm.gain.data_ptr(), norm.eps, norm.rounded, len(norm.gain), norm.centred)
