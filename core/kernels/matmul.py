"""Candidate kernels that multiply an input with rows of a weight on the CPU, and the object that calls the chosen one.

A candidate is a function (weight, input, begin, end) -> (M, end - begin) in the input's dtype. All but the native ones
use torch; none copies the whole weight. The fastest depends on CPU, shape and number of input rows: see `autotune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.native_abi import MOST_PARTS, instruction_sets
from core.kernels.native_library import FLOAT_PANELS, MOST_FEW, NativeLibrary, Parts, open_library
from core.kernels.prepared_input import HostInput
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import BUCKET_LIMITS, BUCKET_NAMES, BUCKET_TOKENS, LAYOUTS, bucket

Candidate = Callable[[QuantizedWeight, HostInput, int, int], Tensor]
NATIVE = "native"
"""Name prefix of the candidates of our compiled library."""
CHUNK_BYTES = 2 << 20
"""Weights are dequantised in row chunks of this size, which stay in the cache until they are used."""


# ---- candidates


def linear(weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """Return (M, end - begin) by torch's own product, in the type in which the weight is stored."""
    return F.linear(x.to(weight.data.dtype), weight.data[begin:end]).to(x.dtype)


def widened(dtype: torch.dtype, weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """Return (M, end - begin) by torch's product, dequantising one chunk of rows to `dtype` at a time."""
    chunk = max(16, CHUNK_BYTES // (weight.shape[1] * dtype.itemsize))
    y = torch.empty((x.rows, end - begin), dtype=x.dtype)
    for start in range(begin, end, chunk):
        stop = min(start + chunk, end)
        y[:, start - begin : stop - begin] = F.linear(x.to(dtype), weight.rows(start, stop).dequantize(dtype))
    return y


def int8pack(weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """Return (M, end - begin) by torch's product of int8 weights with 16-bit inputs."""
    assert weight.scales is not None
    if not weight.data.is_contiguous():  # cut by columns
        return widened(torch.bfloat16, weight, x, begin, end)
    wide = x.to(torch.bfloat16)
    if wide.shape[1] != weight.data.shape[1]:
        wide = F.pad(wide, (0, weight.data.shape[1] - wide.shape[1]))
    scales = weight.scales[begin:end].to(torch.bfloat16)
    return torch._weight_int8pack_mm(wide.contiguous(), weight.data[begin:end], scales).to(x.dtype)


def compiled(library: NativeLibrary, weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> Tensor:
    """Return (M, end - begin) by our compiled library."""
    part = Parts([(weight, begin, end)])
    prepared = x.ordered(weight.order).prepared(library, weight.storage)
    return library.matmul(part, prepared, x.rows, x.columns, x.dtype)[0]


@dataclass(frozen=True)
class Kernel:
    """A candidate and the most input rows for which it is considered; `library` if it is one of ours."""

    name: str
    compute: Candidate
    most_rows: int = 1 << 62
    library: NativeLibrary | None = None


def kernels_for(storage: str) -> tuple[Kernel, ...]:
    """Return the candidates for a storage on this machine, the likeliest winner first."""
    return (*_compiled_offers(storage), *_torch_offers(storage))


def _compiled_offers(storage: str) -> Iterator[Kernel]:
    if storage == "fp32":
        return
    names = instruction_sets()
    for name in names:
        # With AVX-512, torch's own kernels serve larger inputs with float weights.
        few = storage in ("bf16", "fp16") and (name not in FLOAT_PANELS or name != names[0])
        library = open_library(name)
        yield Kernel(f"{NATIVE}-{name}", partial(compiled, library), MOST_FEW if few else 1 << 62, library)


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


class ChosenMatmul:
    """A weight (N, K) on the CPU with the kernel to multiply by for each bucket of input rows."""

    def __init__(self, weight: QuantizedWeight, by_bucket: Sequence[Kernel]) -> None:
        self.weight = weight
        self.rows, self.columns = weight.shape
        self.nbytes = weight.nbytes
        self.storage = weight.storage
        self.by_bucket = tuple(by_bucket)

    def __call__(self, x: Tensor | HostInput, begin: int = 0, end: int | None = None) -> Tensor:
        """Return (M, end - begin) in x's dtype: x (M, K) times the weight's rows [begin, end)."""
        given = x if isinstance(x, HostInput) else HostInput(x)
        stop = self.rows if end is None else end
        return self.by_bucket[bucket(given.rows)].compute(self.weight, given, begin, stop)


class BatchedMatmul:
    """Weights that share one input (q, k, v), multiplied in one native call where possible."""

    def __init__(self, matmuls: Sequence[ChosenMatmul], begins: Sequence[int] = ()) -> None:
        """`begins`: the first row to compute of each weight; all rows if none are given."""
        self._matmuls = tuple(matmuls)
        self._begins = tuple(begins) or (0,) * len(matmuls)
        self._libraries = [self._library(index) for index in range(len(BUCKET_NAMES))]
        parts = [(m.weight, begin, m.rows) for m, begin in zip(self._matmuls, self._begins, strict=True)]
        self._parts = Parts(parts) if any(self._libraries) else None

    def __call__(self, x: HostInput) -> list[Tensor]:
        """Return (M, rows) in x's type for each weight, for x (M, K)."""
        library = self._libraries[bucket(x.rows)]
        if library is None or self._parts is None:
            return [matmul(x, begin) for matmul, begin in zip(self._matmuls, self._begins, strict=True)]
        first = self._matmuls[0]
        prepared = x.ordered(first.weight.order).prepared(library, first.storage)
        return library.matmul(self._parts, prepared, x.rows, x.columns, x.dtype)

    def _library(self, index: int) -> NativeLibrary | None:
        """Return the library that can multiply all of the weights in one call in this bucket, if there is one."""
        library = self._matmuls[0].by_bucket[index].library
        alike = all(m.by_bucket[index].library is library for m in self._matmuls)
        if library is None or not alike or len(self._matmuls) > MOST_PARTS:
            return None
        one_order = len({m.weight.order for m in self._matmuls}) == 1
        alike = library.alike((m.storage for m in self._matmuls), BUCKET_TOKENS[index])
        return library if one_order and alike else None


def host_matmul(weight: QuantizedWeight, names: Mapping[int, str] | Sequence[str] = ()) -> ChosenMatmul:
    """Bind `weight` to the named candidate in each bucket; the first applicable one where no known name is given."""
    found = kernels_for(weight.storage)
    wanted = dict(enumerate(names)) if not isinstance(names, Mapping) else dict(names)
    return ChosenMatmul(weight, [_offer(found, wanted.get(b), b) for b in range(len(BUCKET_NAMES))])


def _offer(found: Sequence[Kernel], name: str | None, bucket_index: int) -> Kernel:
    least_rows = 1 if bucket_index == 0 else BUCKET_LIMITS[bucket_index - 1] + 1
    fitting = [offer for offer in found if offer.most_rows >= least_rows]
    return next((offer for offer in fitting if offer.name == name), fitting[0])
