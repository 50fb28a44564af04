"""Optional ctypes bindings to the compiled kernels; without the library, torch computes.

The calls here take addresses and know nothing of formats beyond their numbers; `matmul` and `inputs` own the tensors.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from core.spec import E2M1, IQ4, LAYOUTS, Storage

FORMATS = {"int8": 0, "int4": 1, "bf16": 2, "fp16": 3}
GROUPED, LAYOUT_BITS = 4, 3
"""The kernel for all layouts, and the bit of a format's number from which on it says which."""
SCALE_KINDS = {"bf16": 0, "fp16": 1, "fp32": 2, "fine": 3}
BOOKS: dict[tuple[int, ...], int] = {E2M1: 0, IQ4: 1}
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INSTRUCTION_SETS = {"avx512vnni": 3, "avxvnni": 2, "avx2": 1, "neon": 4}
"""From the best to the least, with the library's numbers."""
FEW_ROWS = 8
FLOAT_PANELS = ("avxvnni", "avx2")
"""The instruction sets with kernels for more rows of input than these where weights are floats."""
VERSION = 9
"""ABI version; must match `hetegen_version` in dispatch.c."""
PATTERNS = ("_native*.so", "_native*.pyd", "_native*.dll", "_native*.dylib")

_INT, _LONG, _ADDRESS, _FLOAT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_CALLS: dict[str, tuple[type[ctypes._SimpleCData[int]] | None, list[type]]] = {
    "hetegen_copy": (None, [_ADDRESS, _ADDRESS, _LONG]),
    "hetegen_version": (_INT, []),
    "hetegen_supports": (_INT, [_INT]),
    "hetegen_input_kind": (_INT, [_INT, _INT, _LONG]),
    "hetegen_input_bytes": (_LONG, [_LONG, _LONG, _INT]),
    "hetegen_panel_bytes": (_LONG, [_LONG]),
    "hetegen_prepare": (None, [_INT, _ADDRESS, _INT, _LONG, _LONG, _LONG, _ADDRESS, _INT, _INT]),
    "hetegen_matmul": (
        None,
        [_INT, _INT, _LONG, _ADDRESS, _ADDRESS, _LONG, _LONG, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_rms_norm": (None, [_INT, _ADDRESS, _INT, _LONG, _LONG, _ADDRESS, _FLOAT, _INT, _ADDRESS, _INT]),
    "hetegen_encode": (
        None,
        [_INT, _INT, _ADDRESS, _INT, _LONG, _LONG, _LONG, _ADDRESS, _LONG, _ADDRESS, _LONG, _INT],
    ),
    "hetegen_attention_bytes": (_LONG, [_ADDRESS]),
    "hetegen_attention": (
        None,
        [_INT, *(_ADDRESS,) * 6, _FLOAT, _FLOAT, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_layer_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _ADDRESS]),
    "hetegen_layer_begin": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT],
    ),
    "hetegen_layer_end": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 6, _FLOAT, _INT, _ADDRESS, _ADDRESS, _INT],
    ),
    "hetegen_layer_attend": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 6, _FLOAT, _INT, *(_ADDRESS,) * 3, _INT],
    ),
    "hetegen_experts_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _LONG, _INT]),
    "hetegen_route_bytes": (_LONG, [_INT, _ADDRESS, _LONG]),
    "hetegen_route": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, *(_ADDRESS,) * 4, _INT]),
    "hetegen_experts": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, _LONG, *(_ADDRESS,) * 4, _INT]),
}
MOST_PARTS = 16
SHAPE_FIELDS = 19
NO_ATTENTION = (_LONG * SHAPE_FIELDS)(*[0, 1, 1] + [0] * 16)
"""The shape of one that needs no memory."""
SPLIT_KEYS = 256
"""A stretch of keys shorter than this is not worth a task of its own."""
ONE_THREAD_BYTES = 256 << 10
"""Below this many bytes, work runs on one thread."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """query (B, H, S, D), key and value (B, KVH, T, D) of fp32 or bf16, last dimension contiguous.

    `mask` (B, 1, S, T) of bool, True where a key is seen; `sinks` (H,) of fp32; `softcap` 0 = none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    sinks: Tensor | None
    scale: float
    softcap: float

    @property
    def addresses(self) -> tuple[int | None, ...]:
        """Of query, key, value, mask and sinks, in the library's order."""
        tensors = (self.query, self.key, self.value, self.mask, self.sinks)
        return tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)

    def shape(self, threads: int) -> tuple[int, ...]:
        """Sizes and strides in the library's order."""
        q, k, v, mask = self.query, self.key, self.value, self.mask
        kv_heads, keys = k.shape[1], k.shape[2]
        wanted = -(-4 * threads // (q.shape[0] * kv_heads)) if threads > 1 else 1
        splits = max(1, min(wanted, keys // SPLIT_KEYS))
        return (
            *(q.shape[0], q.shape[1], kv_heads, q.shape[2], keys, q.shape[3], v.shape[3]),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *((mask.stride(0), mask.stride(2)) if mask is not None else (0, 0)),
            splits,
        )


class Parts:
    """Rows of at most MOST_PARTS weights of one storage and width, for `matmul`: their addresses are looked up once."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor | None, int, int]]) -> None:
        """Take each weight's bytes, its scales, and the range of rows [begin, end)."""
        self._held = parts
        self.rows = tuple(end - begin for _, _, begin, end in parts)
        self.all_rows = sum(self.rows)
        fields: list[int] = []
        for data, scales, begin, end in parts:
            fields += (data.data_ptr(), data.stride(0) * data.element_size())
            fields += (0, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
            fields += (begin, end)
        self.fields = (_LONG * len(fields))(*fields)


class NativeLibrary:
    """One instruction set of the library. Inputs are (M, K), their last dimension contiguous."""

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
        self._layer_bytes = library.hetegen_layer_bytes
        self._layer_begin = library.hetegen_layer_begin
        self._layer_end = library.hetegen_layer_end
        self._layer_attend = library.hetegen_layer_attend
        self._experts_bytes = library.hetegen_experts_bytes
        self._experts = library.hetegen_experts
        self._route_bytes = library.hetegen_route_bytes
        self._route = library.hetegen_route

    def input_kind(self, storage: str, m: int) -> int:
        """What `matmul` takes for weights of `storage` and `m` rows of input: floats, or numbers of 8 or 16 bits."""
        kind: int = self._input_kind(self._isa, format_number(storage), m)
        return kind

    def prepare(self, x: Tensor, kind: int) -> Tensor:
        """`x` laid out for `matmul` as the kind that `input_kind` says."""
        m, columns = x.shape
        buffer = torch.empty(self._input_bytes(m, columns, kind), dtype=torch.uint8)
        self._prepare(
            self._isa, x.data_ptr(), TYPES[x.dtype], m, columns, x.stride(0), buffer.data_ptr(), kind,
            _threads_for(x.nbytes),
        )  # fmt: skip
        return buffer

    def matmul(
        self, storage: str, parts: Parts, prepared: Tensor, m: int, columns: int, dtype: torch.dtype
    ) -> list[Tensor]:
        """(M, rows) of `dtype` for each part: the prepared input times its rows of `columns` columns."""
        threads = torch.get_num_threads()
        out = torch.empty(m * parts.all_rows, dtype=dtype)
        scratch = torch.empty(threads * self._panel_bytes(columns), dtype=torch.uint8) if m > FEW_ROWS else None
        self._matmul(
            self._isa, format_number(storage), len(parts.rows), parts.fields, prepared.data_ptr(), m, columns,
            out.data_ptr(), TYPES[dtype], None if scratch is None else scratch.data_ptr(), threads,
        )  # fmt: skip
        if len(parts.rows) == 1:
            return [out.view(m, -1)]
        return [own.view(m, -1) for own in out.split_with_sizes([m * rows for rows in parts.rows])]

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float, rounded: bool) -> Tensor:  # noqa: FBT001  the library's own
        """x / sqrt(mean(x^2) + eps) * gain over the last dimension, in x's shape and type.

        `x` (..., K), contiguous; `gain` (K,) of fp32. `rounded`: to x's type before the multiplication with the gain.
        """
        out = torch.empty_like(x)
        self._rms_norm(
            self._isa, x.data_ptr(), TYPES[x.dtype], x.numel() // gain.numel(), gain.numel(), gain.data_ptr(), eps,
            rounded, out.data_ptr(), _threads_for(x.nbytes),
        )  # fmt: skip
        return out

    def encode(self, storage: str, weight: Tensor, data: Tensor, scales: Tensor) -> None:
        """Convert `weight` (N, K), last dimension contiguous, into int8 or int4 `data` and `scales` in place."""
        rows, columns = weight.shape
        self._encode(
            self._isa, format_number(storage), weight.data_ptr(), TYPES[weight.dtype], rows, columns, weight.stride(0),
            data.data_ptr(), data.stride(0), scales.data_ptr(), scales.stride(0), torch.get_num_threads(),
        )  # fmt: skip

    def attention(self, call: AttentionCall) -> Tensor:
        """(B, S, H, D), contiguous, in the query's type."""
        q = call.query
        threads = _threads_for(call.key.nbytes + call.value.nbytes)
        shape = (_LONG * SHAPE_FIELDS)(*call.shape(threads))
        out = torch.empty((q.shape[0], q.shape[2], q.shape[1], call.value.shape[3]), dtype=q.dtype)
        scratch = torch.empty(self._attention_bytes(shape), dtype=torch.uint8)
        self._attention(
            self._isa, shape, *call.addresses, call.scale, call.softcap, out.data_ptr(), TYPES[q.dtype],
            scratch.data_ptr(), threads,
        )  # fmt: skip
        return out

    def layer_begin(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, qkv: Tensor) -> None:
        """The first half of the layer described at the address `layer`, into `qkv`: see `core.kernels.native_layer`."""
        m = x.shape[1]
        scratch = torch.empty(self._layer_bytes(self._isa, layer, TYPES[x.dtype], m, NO_ATTENTION), dtype=torch.uint8)
        self._layer_begin(
            self._isa, layer, x.data_ptr(), TYPES[x.dtype], m, cos.data_ptr(), sin.data_ptr(), TYPES[cos.dtype],
            qkv.data_ptr(), scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def layer_end(self, layer: int, x: Tensor, call: AttentionCall) -> Tensor:
        """The second half: what `call` attends to, through the rest of the layer, in x's shape."""
        out = torch.empty_like(x)
        self._after_attention(self._layer_end, layer, x, call, out.data_ptr())
        return out

    def layer_attend(self, layer: int, x: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """As `layer_end` as far as attention goes: x with what it adds, and the norm of that."""
        both = torch.empty((2, *x.shape), dtype=x.dtype)
        total, normed = both.unbind()
        self._after_attention(self._layer_attend, layer, x, call, total.data_ptr(), normed.data_ptr())
        return total, normed

    def _after_attention(
        self, compute: Callable[..., object], layer: int, x: Tensor, call: AttentionCall, *out: int
    ) -> None:
        attention_threads = _threads_for(call.key.nbytes + call.value.nbytes)
        shape = (_LONG * SHAPE_FIELDS)(*call.shape(attention_threads))
        scratch = torch.empty(self._layer_bytes(self._isa, layer, TYPES[x.dtype], x.shape[1], shape), dtype=torch.uint8)
        compute(
            self._isa, layer, x.data_ptr(), TYPES[x.dtype], shape, *call.addresses, call.scale, attention_threads,
            *out, scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def experts(self, experts: int, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """(M, K): what the experts described at that address make of `x`: see `core.kernels.native_experts`."""
        (m, choices), threads, out = chosen.shape, torch.get_num_threads(), torch.empty_like(x)
        nbytes = self._experts_bytes(self._isa, experts, TYPES[x.dtype], m, choices, threads)
        scratch = torch.empty(nbytes, dtype=torch.uint8)
        self._experts(
            self._isa, experts, x.data_ptr(), TYPES[x.dtype], m, choices, chosen.data_ptr(), shares.data_ptr(),
            out.data_ptr(), scratch.data_ptr(), threads,
        )  # fmt: skip
        return out

    def route(self, router: int, x: Tensor, scores: Tensor, chosen: Tensor, shares: Tensor) -> None:
        """The experts for `x` by the router described at that address: see `core.kernels.native_router`."""
        scratch = torch.empty(self._route_bytes(self._isa, router, x.shape[0]), dtype=torch.uint8)
        self._route(
            self._isa, router, x.data_ptr(), TYPES[x.dtype], x.shape[0], scores.data_ptr(), chosen.data_ptr(),
            shares.data_ptr(), scratch.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip


@cache
def format_number(storage: str) -> int:
    """The library's number of a storage: a kernel, and how grouped weights lie, as kernels.h says."""
    if storage in FORMATS:
        return FORMATS[storage]
    layout = LAYOUTS[cast(Storage, storage)]
    values = 2 if layout.codes else 1 if layout.bits == 4 else 0
    described = values | SCALE_KINDS[layout.scale] << 2 | (layout.group == 16) << 4 | layout.minimum << 5
    return GROUPED | (described | (BOOKS[layout.codes] << 6 if layout.codes else 0)) << LAYOUT_BITS


def _threads_for(nbytes: int) -> int:
    """Waiting for other threads costs more than they save on little work, and far more on a busy machine."""
    return torch.get_num_threads() if nbytes > ONE_THREAD_BYTES else 1


def copy_past_caches(to: int, start: int, nbytes: int) -> None:
    """Copy between addresses past the caches; Python's lock is released meanwhile."""
    _copy()(to, start, nbytes)


@cache
def _copy() -> Callable[[int, int, int], object]:
    library = _load()
    copy: Callable[[int, int, int], object] = ctypes.memmove if library is None else library.hetegen_copy
    return copy


@cache
def library_files() -> tuple[Path, ...]:
    """The compiled libraries that the package was built with; that for this Python first, if there is one."""
    folder = Path(__file__).parent
    found = sorted(file for pattern in PATTERNS for file in folder.glob(pattern))
    own = sysconfig.get_config_var("EXT_SUFFIX") or ""
    return tuple(sorted(found, key=lambda file: not file.name.endswith(own)))


@cache
def native() -> NativeLibrary | None:
    """The library with this processor's best instruction set; None if there is no library or none fits."""
    usable = instruction_sets()
    return open_library(usable[0]) if usable else None


@cache
def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the library has kernels for and this processor knows, best first."""
    library = _load()
    if library is None:
        return ()
    return tuple(name for name, number in INSTRUCTION_SETS.items() if library.hetegen_supports(number))


@cache
def open_library(instruction_set: str) -> NativeLibrary:
    """The library with one of `instruction_sets()`."""
    library = _load()
    assert library is not None
    return NativeLibrary(library, instruction_set)


@cache
def _load() -> ctypes.CDLL | None:
    return next((library for file in library_files() if (library := _opened(file)) is not None), None)


def _opened(file: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _CALLS.items():
            call = getattr(library, name)
            call.restype, call.argtypes = result, arguments
    except (OSError, AttributeError):
        # Built for another system, or by an older version of this package: torch's kernels do the work.
        return None
    return library if library.hetegen_version() == VERSION else None
