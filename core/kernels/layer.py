"""A decoder layer of the commonest make in two calls of our library, for few rows of input.

    x -> norm -> q, k, v -> (norms of their heads) -> rotary positions -> attention -> linear -> + x = s
    s -> norm -> activation(gate) * up -> linear -> + s

Each token makes dozens of calls for a layer otherwise, and for models of some billion parameters the time between the
products is a fifth of the whole. Between the two calls here the caller appends keys and values to its cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native import FORMATS, AttentionCall, NativeLibrary, Parts
from core.kernels.weights import QuantizedWeight

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
LAYER_TYPES = (torch.float32, torch.bfloat16)

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _Norm(ctypes.Structure):
    _fields_ = (("gain", _ADDRESS), ("eps", ctypes.c_double), ("rounded", _INT))


class _Layer(ctypes.Structure):
    """`Layer` of layer.c."""

    _fields_ = (
        *((name, _INT) for name in ("format", "hidden", "heads", "kv_heads", "dim", "inner", "activation")),
        *(("qkv", _INT * 18), ("out", _INT * 6), ("gate_up", _INT * 12), ("down", _INT * 6), ("biases", _ADDRESS * 4)),
        *((name, _Norm) for name in ("input_norm", "inner_norm", "q_norm", "k_norm")),
    )


@dataclass(frozen=True, eq=False)
class NormParts:
    """A root-mean-square norm as `NativeLibrary.rms_norm` takes it."""

    gain: Tensor
    eps: float
    rounded: bool


@dataclass(frozen=True, eq=False)
class LayerParts:
    """What a layer consists of. `dim`: columns of a head.

    Weights of q, k, v, output, gate, up and down, all of one storage; biases (N,) of the first four, of the layer's
    type; norms of the layer's input, before the gate, and of the heads of q and k.
    """

    dim: int
    activation: str
    weights: Sequence[QuantizedWeight]
    biases: Sequence[Tensor | None]
    norms: Sequence[NormParts | None]

    def fit(self, dtype: torch.dtype) -> bool:
        """Whether they are of the sizes and types that the library takes for granted."""
        shapes = [weight.shape for weight in self.weights]
        (rows, hidden), (kv_rows, _), inner, dim = shapes[0], shapes[1], shapes[4][0], self.dim
        outwards, inwards = [(hidden, rows)], [(inner, hidden), (inner, hidden), (hidden, inner)]
        expected = [(rows, hidden), (kv_rows, hidden), (kv_rows, hidden), *outwards, *inwards]
        whole_heads = dim % 2 == 0 and rows % dim == kv_rows % dim == 0 and rows % kv_rows == 0
        gains = [None if norm is None else norm.gain for norm in self.norms]
        lengths = (rows, kv_rows, kv_rows, hidden, hidden, hidden, dim, dim)
        vectors = zip([*self.biases, *gains], lengths, strict=True)
        sized = all(vector is None or vector.shape == (length,) for vector, length in vectors)
        typed = dtype in LAYER_TYPES and all(bias is None or bias.dtype is dtype for bias in self.biases)
        return shapes == expected and whole_heads and sized and typed


class NativeLayer:
    """One layer's two calls. All tensors are of `dtype` and on the CPU; the parts must `fit` it."""

    def __init__(self, library: NativeLibrary, parts: LayerParts, dtype: torch.dtype) -> None:
        self.dim = parts.dim
        self.heads, self.kv_heads = (weight.shape[0] // parts.dim for weight in parts.weights[:2])
        self.dtype = dtype
        self._library = library
        self._held = parts  # their addresses are in the fields
        self._fields = _fields(parts, self.heads, self.kv_heads)
        self._address = ctypes.addressof(self._fields)
        self._widths = [self.heads * parts.dim, self.kv_heads * parts.dim, self.kv_heads * parts.dim]

    def begin(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (1, M, K), cos and sin (1, M, dim), all contiguous -> q (1, H, M, dim), k and v (1, KVH, M, dim)."""
        m = x.shape[1]
        qkv = torch.empty(m * sum(self._widths), dtype=self.dtype)
        self._library.layer_begin(self._address, x, cos, sin, qkv)
        q, k, v = qkv.split_with_sizes([m * width for width in self._widths])
        return self._by_head(q, m, self.heads), self._by_head(k, m, self.kv_heads), self._by_head(v, m, self.kv_heads)

    def end(self, x: Tensor, call: AttentionCall) -> Tensor:
        """x (1, M, K) as given to `begin`, and the attention that its rows ask for -> (1, M, K)."""
        return self._library.layer_end(self._address, x, call)

    def _by_head(self, states: Tensor, m: int, heads: int) -> Tensor:
        return states.view(1, m, heads, self.dim).transpose(1, 2)


def _fields(parts: LayerParts, heads: int, kv_heads: int) -> _Layer:
    q, k, v, out, gate, up, down = parts.weights
    return _Layer(
        FORMATS[q.storage], q.shape[1], heads, kv_heads, parts.dim, gate.shape[0], ACTIVATIONS[parts.activation],
        _products(q, k, v), _products(out), _products(gate, up), _products(down), _addresses(parts.biases),
        *map(_norm, parts.norms),
    )  # fmt: skip


def _products(*weights: QuantizedWeight) -> ctypes.Array[ctypes.c_int64]:
    return Parts([(weight.data, weight.scales, 0, weight.shape[0]) for weight in weights]).fields


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (_ADDRESS * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _norm(norm: NormParts | None) -> _Norm:
    return _Norm() if norm is None else _Norm(norm.gain.data_ptr(), norm.eps, norm.rounded)
