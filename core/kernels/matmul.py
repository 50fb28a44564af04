"""The candidates that multiply an input with rows of a weight on the CPU, and the object that calls the chosen one.

A candidate is a function (weight, input, begin, end) -> (M, end - begin) in the input's dtype. All but the native ones
are torch's; none copies the whole weight. Which is fastest differs by CPU, shape and rows of input: see `autotune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.native_abi import MOST_PARTS, instruction_sets
from core.kernels.native_library import FEW_ROWS, FLOAT_PANELS, NativeLibrary, Parts, open_library
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import BUCKET_LIMITS, BUCKET_NAMES, BUCKET_TOKENS, LAYOUTS, bucket

Candidate = Callable[[QuantizedWeight, HostInput, int, int], Tensor]
NATIVE = "native"
"""How the names of our own library's candidates begin."""
CHUNK_BYTES = 2 << 20
"""Weights are widened in chunks of rows of this size, which stay in the processor's cache until they are used."""


# ---- candidates


def linear(weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """(M, end - begin): torch's own product, in the type that the weight is stored in."""
    return F.linear(x.to(weight.data.dtype), weight.data[begin:end]).to(x.dtype)


def widened(dtype: torch.dtype, weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """(M, end - begin): torch's own product after widening a chunk of rows to `dtype`, chunk after chunk."""
    chunk = max(16, CHUNK_BYTES // (weight.shape[1] * dtype.itemsize))
    y = torch.empty((x.rows, end - begin), dtype=x.dtype)
    for start in range(begin, end, chunk):
        stop = min(start + chunk, end)
        y[:, start - begin : stop - begin] = F.linear(x.to(dtype), weight.rows(start, stop).dequantize(dtype))
    return y


def int8pack(weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """(M, end - begin): torch's product of int8 weights with 16-bit inputs."""
    assert weight.scales is not None
    if not weight.data.is_contiguous():  # cut by columns
        return widened(torch.bfloat16, weight, x, begin, end)
    wide = x.to(torch.bfloat16)
    if wide.shape[1] != weight.data.shape[1]:
        wide = F.pad(wide, (0, weight.data.shape[1] - wide.shape[1]))
    scales = weight.scales[begin:end].to(torch.bfloat16)
    return torch._weight_int8pack_mm(wide.contiguous(), weight.data[begin:end], scales).to(x.dtype)


def compiled(library: NativeLibrary, weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """(M, end - begin): our own library's product."""
    part = Parts([(weight, begin, end)])
    prepared = x.ordered(weight.order).prepared(library, weight.storage)
    return library.matmul(part, prepared, x.rows, x.columns, x.dtype)[0]


@dataclass(frozen=True)
class Kernel:
    """A candidate and the most rows of input for which it makes sense; `library` where it is our own."""

    name: str
    compute: Candidate
    most_rows: int = 1 << 62
    library: NativeLibrary | None = None


def kernels_for(storage: str) -> tuple[Kernel, ...]:
    """The candidates for a kind of storage on this machine, the likeliest to win first."""
    return (*_compiled_offers(storage), *_torch_offers(storage))


def _compiled_offers(storage: str) -> Iterator[Kernel]:
    if storage == "fp32":
        return
    names = instruction_sets()
    for name in names:
        # Where there is AVX-512, torch's own takes more rows of floats.
        few = storage in ("bf16", "fp16") and (name not in FLOAT_PANELS or name != names[0])
        library = open_library(name)
        yield Kernel(f"{NATIVE}-{name}", partial(compiled, library), FEW_ROWS if few else 1 << 62, library)


def _torch_offers(storage: str) -> Iterator[Kernel]:
    if storage in ("fp32", "bf16", "fp16"):
        yield Kernel("linear", linear)
    if storage == "int8":
        yield Kernel("int8pack", int8pack)
    if storage in LAYOUTS:
        yield Kernel("widened-bf16", partial(widened, torch.bfloat16))
    if storage != "fp32":
        yield Kernel("widened-fp32", partial(widened, torch.float32))


# ---- the chosen ones


class HostMatmul(Protocol):
    """A weight on the CPU that multiplies: rows = output features N, columns = K."""

    rows: int
    columns: int
    nbytes: int

    def __call__(self, x: Tensor | HostInput, begin: int = 0, end: int | None = None) -> Tensor:
        """(M, K) -> (M, end - begin) in x's dtype, with the weight's rows [begin, end)."""


class ChosenMatmul:
    """A HostMatmul that calls one candidate for each bucket of rows of input."""

    def __init__(self, weight: QuantizedWeight, by_bucket: Sequence[Kernel]) -> None:
        self.weight = weight
        self.rows, self.columns = weight.shape
        self.nbytes = weight.nbytes
        self.storage = weight.storage
        self.by_bucket = tuple(by_bucket)

    def __call__(self, x: Tensor | HostInput, begin: int = 0, end: int | None = None) -> Tensor:
        """(M, K) -> (M, end - begin) in x's dtype, with the weight's rows [begin, end)."""
        given = x if isinstance(x, HostInput) else HostInput(x)
        stop = self.rows if end is None else end
        return self.by_bucket[bucket(given.rows)].compute(self.weight, given, begin, stop)


class BatchedMatmul:
    """Weights that are multiplied with one input (q, k, v), in one run of our library where it may be."""

    def __init__(self, matmuls: Sequence[ChosenMatmul], begins: Sequence[int] = ()) -> None:
        """`begins`: the first row that is wanted of each, all of them if none are given."""
        self._matmuls = tuple(matmuls)
        self._begins = tuple(begins) or (0,) * len(matmuls)
        self._libraries = [self._library(index) for index in range(len(BUCKET_NAMES))]
        parts = [(m.weight, begin, m.rows) for m, begin in zip(self._matmuls, self._begins, strict=True)]
        self._parts = Parts(parts) if any(self._libraries) else None

    def __call__(self, x: HostInput) -> list[Tensor]:
        """(M, K) -> (M, rows) for each weight, in x's type."""
        library = self._libraries[bucket(x.rows)]
        if library is None or self._parts is None:
            return [matmul(x, begin) for matmul, begin in zip(self._matmuls, self._begins, strict=True)]
        first = self._matmuls[0]
        prepared = x.ordered(first.weight.order).prepared(library, first.storage)
        return library.matmul(self._parts, prepared, x.rows, x.columns, x.dtype)

    def _library(self, index: int) -> NativeLibrary | None:
        """The one that all of them are multiplied with in this bucket, if there is one."""
        library = self._matmuls[0].by_bucket[index].library
        alike = all(m.by_bucket[index].library is library for m in self._matmuls)
        if library is None or not alike or len(self._matmuls) > MOST_PARTS:
            return None
        one_order = len({m.weight.order for m in self._matmuls}) == 1
        alike = library.alike((m.storage for m in self._matmuls), BUCKET_TOKENS[index])
        return library if one_order and alike else None


def host_matmul(weight: QuantizedWeight, names: Mapping[int, str] | Sequence[str] = ()) -> ChosenMatmul:
    """`weight` with the named candidate for each bucket; without a name, or with one not offered here, the first."""
    found = kernels_for(weight.storage)
    wanted = dict(enumerate(names)) if not isinstance(names, Mapping) else dict(names)
    return ChosenMatmul(weight, [_offer(found, wanted.get(b), b) for b in range(len(BUCKET_NAMES))])


def _offer(found: Sequence[Kernel], name: str | None, bucket_index: int) -> Kernel:
    least_rows = 1 if bucket_index == 0 else BUCKET_LIMITS[bucket_index - 1] + 1
    fitting = [offer for offer in found if offer.most_rows >= least_rows]
    return next((offer for offer in fitting if offer.name == name), fitting[0])
