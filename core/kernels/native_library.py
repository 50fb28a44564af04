"""Calls the compiled kernels with tensors: products, norms, attention, whole layers, experts.

The C functions take addresses and format numbers only; `matmul` and `prepared_input` own the tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from core.kernels.native_abi import INSTRUCTION_SETS, SHAPE_FIELDS, TYPES, format_number, instruction_sets, library
from core.kernels.native_fields import ADDRESS, INT, address
from core.kernels.packed_width import PACKED, unpacked
from core.kernels.quantized_weight import QuantizedWeight

MOST_FEW = 16
"""Up to so many input rows, each gives the same bits whatever the others are; must match kernels.h."""
FLOAT_PANELS = ("avxvnni", "avx2")
"""The instruction sets whose kernels for float weights also take more than MOST_FEW input rows."""
NO_ATTENTION = (ctypes.c_int64 * SHAPE_FIELDS)(0, 1, 1)
"""An attention shape that needs no scratch memory."""
SPLIT_KEYS = 256
"""Fewer keys than this are not worth a task of their own."""
ONE_THREAD_BYTES = 256 << 10
"""Work on fewer bytes than this runs on one thread."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """query (B, H, S, D), key and value (B, KVH, T, D) of fp32 or bf16, last dimension contiguous, or both packed.

    `mask` (B, 1, S, T) is bool, True where a key is visible; `sinks` (H,) is fp32; `softcap` 0 = none. `recent`: the
    last R keys and values (1, KVH, R, D) as floats of the query's type, read instead of their packed copies.
    `least_keys`: the fewest that are worth a task of their own.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    sinks: Tensor | None
    scale: float
    softcap: float
    recent: tuple[Tensor, Tensor] | None = None
    least_keys: int = SPLIT_KEYS

    @property
    def value_dim(self) -> int:
        """Return the columns of a head's result."""
        return unpacked(self.value.shape[3]) if self.value.dtype is PACKED else self.value.shape[3]

    @property
    def addresses(self) -> tuple[object, ...]:
        """Addresses of query, keys and values, mask and sinks, in the library's order."""
        recent = self.recent or (None, None)
        states = (ADDRESS * 4)(*map(address, (self.key, self.value, *recent)))
        return address(self.query), states, address(self.mask), address(self.sinks)

    def shape(self, threads: int) -> tuple[int, ...]:
        """Return sizes and strides in the library's order."""
        q, k, v, mask = self.query, self.key, self.value, self.mask
        kv_heads, keys = k.shape[1], k.shape[2]
        recent = 0 if self.recent is None else self.recent[0].shape[2]
        strides = () if self.recent is None else (*self.recent[0].stride()[1:3], *self.recent[1].stride()[1:3])
        return (
            *(q.shape[0], q.shape[1], kv_heads, q.shape[2], keys, q.shape[3], self.value_dim),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *((mask.stride(0), mask.stride(2)) if mask is not None else (0, 0)),
            stretches(q.shape[0] * kv_heads, keys, threads, recent, self.least_keys),
            int(v.dtype is PACKED),
            *(recent, *(strides or (0,) * 4)),
        )


def stretches(heads: int, keys: int, threads: int, recent: int = 0, least: int = SPLIT_KEYS) -> int:
    """Return the number of tasks that each head's keys are split into; the last `recent` keys are one task."""
    if recent:
        return 1 + (stretches(heads, keys - recent, threads) if keys > recent else 0)
    wanted = -(-4 * threads // heads) if threads > 1 else 1
    return max(1, min(wanted, keys // least))


class Parts:
    """Row ranges of at most MOST_PARTS weights of equal width for `matmul`; their addresses are looked up once. Their
    storages must take the same kind of prepared input."""

    def __init__(self, parts: Sequence[tuple[QuantizedWeight, int, int]]) -> None:
        """`parts`: weights, each with a range of rows [begin, end)."""
        self._held = parts
        self.rows = tuple(end - begin for _, begin, end in parts)
        self.all_rows = sum(self.rows)
        fields: list[int] = []
        for weight, begin, end in parts:
            data, scales = weight.data, weight.scales
            fields += (data.data_ptr(), data.stride(0) * data.element_size())
            fields += (0, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
            fields += (begin, end, format_number(weight.storage), data.shape[1] * data.element_size())
        self.fields = (INT * len(fields))(*fields)

    @classmethod
    def whole(cls, weights: Sequence[QuantizedWeight]) -> Parts:
        """Return all rows of these weights."""
        return cls([(weight, 0, weight.shape[0]) for weight in weights])


def rows_of(*weights: QuantizedWeight) -> ctypes.Array[ctypes.c_int64]:
    """Return the fields of all rows of weights (N, K); the caller must keep the weights alive."""
    return Parts.whole(weights).fields


class NativeLibrary:
    """The library for one instruction set. Inputs are (M, K), last dimension contiguous."""

    def __init__(self, library: ctypes.CDLL, instruction_set: str) -> None:
        self.instruction_set = instruction_set
        self._isa = INSTRUCTION_SETS[instruction_set]
        self._input_kind = cache(library.hetegen_input_kind)
        self._input_bytes = cache(library.hetegen_input_bytes)
        self._panel_bytes = cache(library.hetegen_panel_bytes)
        self._prepare = library.hetegen_prepare
        self._matmul = library.hetegen_matmul
        self._rms_norm = library.hetegen_rms_norm
        self._encode = library.hetegen_encode
        self._attention_bytes = library.hetegen_attention_bytes
        self._attention = library.hetegen_attention
        self._states = library.hetegen_states
        self._layer_bytes = library.hetegen_layer_bytes
        self._layer_begin = library.hetegen_layer_begin
        self._layer_end = library.hetegen_layer_end
        self._layer_attend = library.hetegen_layer_attend
        self._layers_bytes = library.hetegen_layers_bytes
        self._layers = library.hetegen_layers
        self._experts_bytes = library.hetegen_experts_bytes
        self._experts = library.hetegen_experts
        self._mixture_bytes = library.hetegen_mixture_bytes
        self._mixture = library.hetegen_mixture
        self._route_bytes = library.hetegen_route_bytes
        self._route = library.hetegen_route
        self._head_bytes = library.hetegen_head_bytes
        self._head = library.hetegen_head
        self._heads_bytes = library.hetegen_heads_bytes
        self._heads = library.hetegen_heads
        self._latent_layer_bytes = library.hetegen_latent_layer_bytes
        self._latent_layer = library.hetegen_latent_layer
        self._recurrent_layer_bytes = library.hetegen_recurrent_layer_bytes
        self._recurrent_layer = library.hetegen_recurrent_layer
        self._block_bytes = library.hetegen_block_bytes
        self._block = library.hetegen_block
        self._convolve = library.hetegen_convolve
        self._delta_rule = library.hetegen_delta_rule
        self._state_scan = library.hetegen_state_scan

    def input_kind(self, storage: str, m: int, dtype: torch.dtype) -> int:
        """Return the kind of input `matmul` takes for weights of `storage` and `m` input rows of `dtype`: floats, or
        integers of 8 or 16 bits."""
        kind: int = self._input_kind(self._isa, format_number(storage), m, TYPES[dtype])
        return kind

    def alike(self, storages: Iterable[str], m: int) -> bool:
        """Return whether weights of these storages take one kind of input for `m` rows, whatever the input's type."""
        found = list(storages)
        return all(len({self.input_kind(one, m, dtype) for one in found}) == 1 for dtype in TYPES)

    def prepare(self, x: Tensor, kind: int) -> Tensor:
        """Convert `x` (M, K) for `matmul` to a kind returned by `input_kind`."""
        m, columns = x.shape
        buffer = torch.empty(self._input_bytes(m, columns, kind), dtype=torch.uint8)
        self._prepare(
            self._isa, x.data_ptr(), TYPES[x.dtype], m, columns, x.stride(0), buffer.data_ptr(), kind,
            _threads_for(x.nbytes),
        )  # fmt: skip
        return buffer

    def matmul(self, parts: Parts, prepared: Tensor, m: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
        """Return (M, rows) of `dtype` for each part: the prepared input times the part's rows of `columns` columns."""
        threads = torch.get_num_threads()
        out = torch.empty(m * parts.all_rows, dtype=dtype)
        scratch = torch.empty(threads * self._panel_bytes(columns), dtype=torch.uint8) if m > MOST_FEW else None
        self._matmul(
            self._isa, len(parts.rows), parts.fields, prepared.data_ptr(), m, columns, out.data_ptr(), TYPES[dtype],
            None if scratch is None else scratch.data_ptr(), threads,
        )  # fmt: skip
        if len(parts.rows) == 1:
            return [out.view(m, -1)]
        return [own.view(m, -1) for own in out.split_with_sizes([m * rows for rows in parts.rows])]

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float, *, rounded: bool, centred: bool = False) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * gain over the last dimension, in x's shape and type.

        `x` is (..., K), contiguous; `gain` is (K,) of fp32. `rounded`: round to x's type before multiplying with the
        gain. `centred`: subtract the mean from x first.
        """
        out = torch.empty_like(x)
        self._rms_norm(
            self._isa, x.data_ptr(), TYPES[x.dtype], x.numel() // gain.numel(), gain.numel(), gain.data_ptr(), eps,
            rounded, centred, out.data_ptr(), _threads_for(x.nbytes),
        )  # fmt: skip
        return out

    def encode(self, storage: str, weight: Tensor, data: Tensor, scales: Tensor) -> None:
        """Quantise `weight` (N, K), last dimension contiguous, into `data` and `scales` in place."""
        rows, columns = weight.shape
        self._encode(
            self._isa, format_number(storage), weight.data_ptr(), TYPES[weight.dtype], rows, columns, weight.stride(0),
            data.data_ptr(), data.stride(0), scales.data_ptr(), scales.stride(0), torch.get_num_threads(),
        )  # fmt: skip

    def attention(self, call: AttentionCall) -> Tensor:
        """Return the attention output (B, S, H, D), contiguous, in the query's type."""
        q = call.query
        threads = _threads_for(call.key.nbytes + call.value.nbytes)
        shape = (ctypes.c_int64 * SHAPE_FIELDS)(*call.shape(threads))
        out = torch.empty((q.shape[0], q.shape[2], q.shape[1], call.value_dim), dtype=q.dtype)
        scratch = torch.empty(self._attention_bytes(shape), dtype=torch.uint8)
        self._attention(
            self._isa, shape, *call.addresses, call.scale, call.softcap, out.data_ptr(), TYPES[q.dtype],
            scratch.data_ptr(), threads,
        )  # fmt: skip
        return out

    def pack(self, states: Tensor, packed: Tensor, *, mixed: bool) -> None:
        """Quantise states (1, H, T, D), fp32 or bf16, into `packed` (1, H, T, packed_width(D)): see `packed_states`."""
        self._convert_states(states, packed, mixed=mixed, widens=False)

    def widen(self, packed: Tensor, states: Tensor, *, mixed: bool) -> None:
        """Dequantise `packed` (1, H, T, packed_width(D)) into `states` (1, H, T, D)."""
        self._convert_states(states, packed, mixed=mixed, widens=True)

    def _convert_states(self, states: Tensor, packed: Tensor, *, mixed: bool, widens: bool) -> None:
        shape = (*states.shape[1:], *states.stride()[1:3], *packed.stride()[1:3], int(mixed))
        self._states(
            self._isa, (ctypes.c_int64 * len(shape))(*shape), states.data_ptr(), TYPES[states.dtype], packed.data_ptr(),
            widens, _threads_for(states.nbytes),
        )  # fmt: skip

    def layer_begin(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, qkv: Tensor) -> None:
        """Compute the first half of the layer at address `layer` for x (1, M, K) into `qkv`: see `native_layer`."""
        m = x.shape[1]
        scratch = torch.empty(self._layer_bytes(self._isa, layer, TYPES[x.dtype], m, NO_ATTENTION), dtype=torch.uint8)
        self._layer_begin(
            self._isa, layer, x.data_ptr(), TYPES[x.dtype], m, cos.data_ptr(), sin.data_ptr(), TYPES[cos.dtype],
            qkv.data_ptr(), scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def layer_end(self, layer: int, x: Tensor, call: AttentionCall, side: Tensor | None = None) -> Tensor:
        """Compute the second half: the attention of `call` and the rest of the layer, (1, M, K) as x, with the layer's
        side input (1, M, P), if it takes one; its rows are contiguous."""
        out = torch.empty_like(x)
        given = (None, 0) if side is None else (side.data_ptr(), side.stride(1))
        self._after_attention(self._layer_end, layer, x, call, *given, out.data_ptr())
        return out

    def layer_attend(self, layer: int, x: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Compute the attention part of `layer_end`: return x (1, M, K) plus the attention output, and its norm."""
        both = torch.empty((2, *x.shape), dtype=x.dtype)
        total, normed = both.unbind()
        self._after_attention(self._layer_attend, layer, x, call, total.data_ptr(), normed.data_ptr())
        return total, normed

    def _after_attention(
        self, compute: Callable[..., object], layer: int, x: Tensor, call: AttentionCall, *given: int | None
    ) -> None:
        attention_threads = _threads_for(call.key.nbytes + call.value.nbytes)
        shape = (ctypes.c_int64 * SHAPE_FIELDS)(*call.shape(attention_threads))
        scratch = torch.empty(self._layer_bytes(self._isa, layer, TYPES[x.dtype], x.shape[1], shape), dtype=torch.uint8)
        compute(
            self._isa, layer, x.data_ptr(), TYPES[x.dtype], shape, *call.addresses, call.scale, attention_threads,
            *given, scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def layers(self, layers: int, count: int, x: Tensor) -> Tensor:
        """Return x (1, M, K) after the `count` layers described at address `layers`, (1, M, K): see `native_run`."""
        out, m, type, threads = torch.empty_like(x), x.shape[1], TYPES[x.dtype], torch.get_num_threads()
        scratch = torch.empty(self._layers_bytes(self._isa, count, layers, type, m, threads), dtype=torch.uint8)
        self._layers(
            self._isa, count, layers, x.data_ptr(), type, m, out.data_ptr(), scratch.data_ptr(), threads
        )  # fmt: skip
        return out

    def experts(self, experts: int, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Return the output (M, K) of the experts described at address `experts` for `x`: see `native_experts`."""
        (m, choices), threads, out = chosen.shape, torch.get_num_threads(), torch.empty_like(x)
        nbytes = self._experts_bytes(self._isa, experts, TYPES[x.dtype], m, choices, threads)
        scratch = torch.empty(nbytes, dtype=torch.uint8)
        self._experts(
            self._isa, experts, x.data_ptr(), TYPES[x.dtype], m, choices, chosen.data_ptr(), shares.data_ptr(),
            out.data_ptr(), scratch.data_ptr(), threads,
        )  # fmt: skip
        return out

    def route(self, router: int, x: Tensor, scores: Tensor, chosen: Tensor, shares: Tensor) -> None:
        """Route x (M, K) by the router at address `router`; fill `scores` (M, experts), `chosen` and `shares` (M,
        k)."""
        scratch = torch.empty(self._route_bytes(self._isa, router, TYPES[x.dtype], x.shape[0]), dtype=torch.uint8)
        self._route(
            self._isa, router, x.data_ptr(), TYPES[x.dtype], x.shape[0], scores.data_ptr(), chosen.data_ptr(),
            shares.data_ptr(), scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def mixture(self, mixture: int, x: Tensor) -> Tensor:
        """Return the output (M, K) of the mixture of experts described at address `mixture`: see `native_mixture`."""
        type, threads, out = TYPES[x.dtype], torch.get_num_threads(), torch.empty_like(x)
        nbytes = self._mixture_bytes(self._isa, mixture, type, x.shape[0], threads)
        scratch = torch.empty(nbytes, dtype=torch.uint8)
        self._mixture(
            self._isa, mixture, x.data_ptr(), type, x.shape[0], out.data_ptr(), scratch.data_ptr(), threads
        )  # fmt: skip
        return out

    def head(self, coarse: Parts, full: Parts, x: Tensor, wanted: int) -> tuple[Tensor, int]:
        """Return the logits (M, N) of x (M, K), contiguous, at most MOST_FEW rows, in x's type, and the number of
        recomputed logits. All rows are computed with the `coarse` copy, then at least `wanted` per input row with
        `full`."""
        (m, columns), threads = x.shape, torch.get_num_threads()
        out = torch.empty((m, full.all_rows), dtype=x.dtype)
        nbytes = self._head_bytes(self._isa, coarse.fields, full.fields, m, columns, threads)
        scratch = torch.empty(nbytes, dtype=torch.uint8)
        again: int = self._head(
            self._isa, coarse.fields, full.fields, x.data_ptr(), TYPES[x.dtype], m, columns, wanted, out.data_ptr(),
            scratch.data_ptr(), threads,
        )  # fmt: skip
        return out, again

    def heads(self, heads: int, x: Tensor, out: Tensor) -> None:
        """Multiply x (1, H, M, K) with the weights described at address `heads`, into `out` (1, H, M, N): see
        `native_heads`."""
        m, type = x.shape[2], TYPES[x.dtype]
        scratch = torch.empty(self._heads_bytes(self._isa, heads, type, m), dtype=torch.uint8)
        self._heads(
            self._isa, heads, x.data_ptr(), *x.stride()[1:3], type, m, out.data_ptr(), *out.stride()[1:3],
            scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def latent_layer(self, layer: int, x: Tensor, seen: int) -> Tensor:
        """Return (1, M, K): x through the layer at address `layer`, with the cache at address `seen`: see
        `native_latent`."""
        m, type, out = x.shape[1], TYPES[x.dtype], torch.empty_like(x)
        scratch = torch.empty(self._latent_layer_bytes(self._isa, layer, type, m, seen), dtype=torch.uint8)
        self._latent_layer(
            self._isa, layer, x.data_ptr(), type, m, seen, out.data_ptr(), scratch.data_ptr(), torch.get_num_threads()
        )
        return out

    def recurrent_layer(self, kind: int, layer: int, x: Tensor, memory: int) -> Tensor:
        """Return (1, 1, K): x through the layer and memory at these addresses: see `native_recurrent_layer`."""
        out, type = torch.empty_like(x), TYPES[x.dtype]
        scratch = torch.empty(self._recurrent_layer_bytes(kind, layer, type), dtype=torch.uint8)
        self._recurrent_layer(
            self._isa, kind, layer, x.data_ptr(), type, memory, out.data_ptr(), scratch.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def block(self, block: int, x: Tensor, memory: int) -> Tensor:
        """Return (1, 1, K): x through the decoder layer and memory at these addresses: see `native_block`."""
        out, type, threads = torch.empty_like(x), TYPES[x.dtype], torch.get_num_threads()
        scratch = torch.empty(self._block_bytes(self._isa, block, type, threads), dtype=torch.uint8)
        self._block(
            self._isa, block, x.data_ptr(), type, memory, out.data_ptr(), scratch.data_ptr(), threads
        )  # fmt: skip
        return out

    def convolve(self, call: int, nbytes: int) -> None:
        """Run the convolution described at address `call`: see `core.kernels.native_recurrent`."""
        self._convolve(self._isa, call, _threads_for(nbytes))

    def delta_rule(self, call: int, nbytes: int) -> None:
        """Run the gated delta rule described at address `call`, over a state of `nbytes`."""
        self._delta_rule(self._isa, call, _threads_for(nbytes))

    def state_scan(self, call: int, nbytes: int) -> None:
        """Run Mamba-2's scan described at address `call`, over a state of `nbytes`."""
        self._state_scan(self._isa, call, _threads_for(nbytes))


def _threads_for(nbytes: int) -> int:
    """Return the thread count for work on `nbytes`; small work loses more by waiting for threads than it gains."""
    return torch.get_num_threads() if nbytes > ONE_THREAD_BYTES else 1


@cache
def native() -> NativeLibrary | None:
    """Return the library with this processor's best instruction set; None if there is no usable library."""
    usable = instruction_sets()
    return open_library(usable[0]) if usable else None


@cache
def open_library(instruction_set: str) -> NativeLibrary:
    """Return the library for one of `instruction_sets()`."""
    compiled = library()
    assert compiled is not None
    return NativeLibrary(compiled, instruction_set)
