"""A decoder layer of the commonest make in two calls of our library, for few rows of input.

    x -> norm -> q, k, v -> (norms of q and k) -> rotary positions -> attention -> linear -> norm -> + x = s
    s -> norm -> activation(gate) * up -> linear -> norm -> + s

Each norm may be missing. Where something else follows than the second line (experts), the second call ends before it,
with s and its norm. Between the two calls the caller appends keys and values to its cache. Otherwise a token makes
dozens of calls for each layer, and with a billion parameters the time between the products is a fifth of the whole.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.native_abi import PART_FIELDS
from core.kernels.native_library import AttentionCall, NativeLibrary, Parts
from core.kernels.quantized_weight import QuantizedWeight

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
NORMS = 7
LAYER_TYPES = (torch.float32, torch.bfloat16)

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class NormFields(ctypes.Structure):
    """`NormOf` of norms.h."""

    _fields_ = (("gain", _ADDRESS), ("eps", ctypes.c_double), ("rounded", _INT), ("columns", _INT))


class _Layer(ctypes.Structure):
    """`Layer` of layer.c."""

    _fields_ = (
        *((name, _INT) for name in ("hidden", "heads", "kv_heads", "dim", "inner", "activation", "turned")),
        *((name, ctypes.c_double) for name in ("residual", "factor")),
        *(
            (name, _INT * (count * PART_FIELDS))
            for name, count in (("qkv", 3), ("out", 1), ("gate_up", 2), ("down", 1))
        ),
        *(("biases", _ADDRESS * 4), ("norms", NormFields * NORMS)),
    )


@dataclass(frozen=True, eq=False)
class NormParts:
    """A root-mean-square norm as `NativeLibrary.rms_norm` takes it."""

    gain: Tensor
    eps: float
    rounded: bool


@dataclass(frozen=True, eq=False)
class LayerParts:
    """What a layer consists of. `dim`: columns of a head, `turned`: those that positions turn, 0 = all; `residual`:
    what either half adds is multiplied with it; `factor`: so is the layer's result.

    Weights of q, k, v, output, and of gate, up and down unless the caller computes what follows attention: of storages
    that want the same kind of input for few rows; biases (N,) of the first four, of the layer's type; norms before and
    after attention, before and after the gated part, and of q, k and v: of each head or of all.
    """

    dim: int
    activation: str
    weights: Sequence[QuantizedWeight]
    biases: Sequence[Tensor | None]
    norms: Sequence[NormParts | None]
    residual: float = 1.0
    turned: int = 0
    factor: float = 1.0

    def fit(self, dtype: torch.dtype) -> bool:
        """Whether they are of the sizes and types that the library takes for granted."""
        shapes = [weight.shape for weight in self.weights]
        (rows, hidden), (kv_rows, _), dim = shapes[0], shapes[1], self.dim
        expected = [(rows, hidden), (kv_rows, hidden), (kv_rows, hidden), (hidden, rows)]
        if len(shapes) > len(expected):
            inner = shapes[4][0]
            expected += [(inner, hidden), (inner, hidden), (hidden, inner)]
        whole_heads = dim % 2 == 0 and rows % dim == kv_rows % dim == 0 and rows % kv_rows == 0
        gains = [None if norm is None else norm.gain for norm in self.norms]
        vectors = [
            *zip(self.biases, (rows, kv_rows, kv_rows, hidden), strict=True),
            *((gain, hidden) for gain in gains[:4]),
        ]
        sized = all(vector is None or vector.shape == (length,) for vector, length in vectors)
        typed = dtype in LAYER_TYPES and all(bias is None or bias.dtype is dtype for bias in self.biases)
        by_head = [
            norm is None or len(norm.gain) in (dim, n)
            for norm, n in zip(self.norms[4:], (rows, kv_rows, kv_rows), strict=True)
        ]
        return shapes == expected and whole_heads and sized and typed and all(by_head)


class NativeLayer:
    """One layer's two calls. All tensors are of `dtype` and on the CPU; the parts must `fit` it."""

    def __init__(self, library: NativeLibrary, parts: LayerParts, dtype: torch.dtype) -> None:
        self.dim = parts.dim
        self.heads, self.kv_heads = (weight.shape[0] // parts.dim for weight in parts.weights[:2])
        self.dtype = dtype
        self.library = library
        self.turned = parts.turned or parts.dim
        self.factor = parts.factor
        self.sizes = parts.weights[0].shape[1], self.heads, self.kv_heads, parts.dim, self.turned
        self._held = parts  # their addresses are in the fields
        self._fields = _fields(parts, self.heads, self.kv_heads)
        self.address = ctypes.addressof(self._fields)
        self._widths = [self.heads * parts.dim, self.kv_heads * parts.dim, self.kv_heads * parts.dim]

    def begin(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (1, M, K), cos and sin (1, M, turned) of its type or fp32, all contiguous -> q (1, H, M, dim), k and v
        (1, KVH, M, dim)."""
        m = x.shape[1]
        qkv = torch.empty(m * sum(self._widths), dtype=self.dtype)
        self.library.layer_begin(self.address, x, cos, sin, qkv)
        q, k, v = qkv.split_with_sizes([m * width for width in self._widths])
        return self._by_head(q, m, self.heads), self._by_head(k, m, self.kv_heads), self._by_head(v, m, self.kv_heads)

    def end(self, x: Tensor, call: AttentionCall) -> Tensor:
        """x (1, M, K) as given to `begin`, and the attention that its rows ask for -> (1, M, K)."""
        return self.library.layer_end(self.address, x, call)

    def attend(self, x: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Attention's part of `end`: x with what attention adds, and the norm of that, (1, M, K) each."""
        return self.library.layer_attend(self.address, x, call)

    def _by_head(self, states: Tensor, m: int, heads: int) -> Tensor:
        return states.view(1, m, heads, self.dim).transpose(1, 2)


def _fields(parts: LayerParts, heads: int, kv_heads: int) -> _Layer:
    q, k, v, out, *gated = parts.weights
    fields = _Layer(hidden=q.shape[1], heads=heads, kv_heads=kv_heads, dim=parts.dim, residual=parts.residual)
    fields.turned, fields.factor = parts.turned or parts.dim, parts.factor
    fields.qkv, fields.out = _products(q, k, v), _products(out)
    fields.biases, fields.norms = _addresses(parts.biases), (NormFields * NORMS)(*map(norm_fields, parts.norms))
    if gated:
        gate, up, down = gated
        fields.inner, fields.activation = gate.shape[0], ACTIVATIONS[parts.activation]
        fields.gate_up, fields.down = _products(gate, up), _products(down)
    return fields


def _products(*weights: QuantizedWeight) -> ctypes.Array[ctypes.c_int64]:
    return Parts([(weight, 0, weight.shape[0]) for weight in weights]).fields


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (_ADDRESS * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def norm_fields(norm: NormParts | None) -> NormFields:
    """Fields of a norm as the library takes it; its gain is not held."""
    return NormFields() if norm is None else NormFields(norm.gain.data_ptr(), norm.eps, norm.rounded, len(norm.gain))
