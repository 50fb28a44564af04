"""Products with quantised weights by torch's own operators, on devices without kernels of ours (Intel, Apple).

These operators are private to torch and differ between makers. Which of them a device has, what they take and in which
order they read a weight is therefore found out by trials on the device itself, once and in a process of their own:
an unusual shape may end that process. What is found is remembered (`TorchProduct`); what raises an error or computes
something else is not used, and such weights are dequantised and multiplied.

Weights stay in our own layout (`quantized_weight`), so that streamed rows are multiplied as they arrive and no memory
is taken twice.

- 8 bits, int8 by row: `_weight_int8pack_mm` reads the same bytes.
- 4 bits, see TAKEN: torch's operators read (q - 8) * scale from the same nibbles, in another order of columns. The
  order is within runs of 128 columns, so that the columns of the input are permuted, not the weight. The scales are
  brought into torch's form for each product: kept, they would take a fifth more memory. What a minimum adds to
  (q - 8) * scale is multiplied with the sums of each group's inputs: Intel's operators have only integers for it, and
  Apple's round it so that the error of a product quadruples.

Sources: torch's aten/src/ATen/native/mps/operations/Quantized.mm and mkldnn/xpu/Blas.cpp.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.cuda_dequant import AGREES, MOST_FEW, random_weight
from core.kernels.quantized_weight import RUN, QuantizedWeight, group_scales, pack
from core.spec import LAYOUTS, Storage, TorchProduct
from core.units import MIB

GROUPS = (32, 64, 128, 256)
"""Columns that may share a scale in torch's products of 4 bits."""
TAKEN = frozenset(name for name, one in LAYOUTS.items() if one.bits == 4 and one.group in GROUPS and not one.codes)
"""Storages of 4 bits that these products express. Code books are not linear in q, and groups of 16 are too small.
`fine` and fp32 scales are rounded to the input's type, as dequantised weights would be."""
ZERO = 8
"""The q that torch's products of 4 bits take for zero."""
STEPS = {1: 37, 16: 48, 32: 96}
"""Multiples of rows that a device may require, from the best on, and how many rows to try each with."""
TYPES = (torch.bfloat16, torch.float16, torch.float32)
COLUMNS = 300
"""Columns of weights in trials: not a multiple of any padding."""
AGREES_IN_FP32 = 2e-5
"""Maximum error of a product in fp32 as a fraction of the largest output; rounding to fewer bits exceeds it."""
SIDE = 2048
"""Rows and columns of the weight that is timed."""
ROUNDS = 3
SCALES_BYTES = 32 * MIB
"""Bound on the temporary memory for scales, to about a factor of 2."""

Int4Call = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""(x (M, K), data (N, K / 2) of bytes, group, scales (N, groups)) -> (M, N) in x's type: calls one of torch's
operators, which multiplies with (q - 8) * scale and reads the nibbles of `data` in an order of its own."""


def scales_with_zeros(x: Tensor, data: Tensor, group: int, scales: Tensor) -> Tensor:
    """Multiply as Apple's devices can: scales and zeros in one tensor (groups, N, 2), rows in multiples of 8."""
    both = x.new_zeros((*scales.T.shape, 2))
    both[:, :, 0] = scales.T
    return torch._weight_int4pack_mm(x, data.view(torch.int32).view(len(data) // 8, -1, 32, 1), group, both)


def scales_and_zeros(x: Tensor, data: Tensor, group: int, scales: Tensor) -> Tensor:
    """Multiply as Intel's devices can: scales and zeros in two tensors (groups, N), the latter in the unit of q."""
    by_group = x.new_empty(scales.T.shape).copy_(scales.T)
    zeros = torch.full_like(by_group, ZERO, dtype=torch.int8)
    return torch._weight_int4pack_mm_with_scales_and_zeros(x, data.view(torch.int32), group, by_group, zeros)


@dataclass(frozen=True, eq=False)
class TorchInt8:
    """torch's product with int8 weights whose rows are a multiple of `step`, for 16-bit inputs only: it would round
    wider ones."""

    step: int = 1

    def takes(self, x: Tensor) -> bool:
        return x.shape[0] <= MOST_FEW and x.dtype.itemsize == 2

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        assert isinstance(weight.scales, Tensor)
        return torch._weight_int8pack_mm(_padded(x, weight.data.shape[1]), weight.data, weight.scales.to(x.dtype))

    def widen(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        return weight.dequantize(dtype)


@dataclass(frozen=True, eq=False)
class TorchInt4:
    """torch's product with weights of 4 bits whose rows are a multiple of `step`, for at most `most` input rows of
    these types. `order` (128,): our column at each place of the operator's runs."""

    call: Int4Call
    order: Tensor
    step: int = 1
    types: frozenset[torch.dtype] = frozenset(TYPES)
    most: int = MOST_FEW

    def takes(self, x: Tensor) -> bool:
        return x.shape[0] <= self.most and x.dtype in self.types

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        runs = weight.data.shape[1] * 2 // RUN
        ordered = _padded(x, runs * RUN).view(len(x), runs, RUN)[:, :, self.order].flatten(1)
        rows, some = weight.shape[0], _rows_at_once(weight)
        parts = [self._part(weight.rows(at, min(at + some, rows)), ordered) for at in range(0, rows, some)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def widen(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        return weight.dequantize(dtype)

    def _part(self, weight: QuantizedWeight, ordered: Tensor) -> Tensor:
        layout = LAYOUTS[weight.format]
        assert weight.scales is not None
        scales, minimums = group_scales(weight.scales, layout, ordered.shape[1])
        y = self.call(ordered, weight.data, layout.group, scales)
        if minimums is None:
            return y
        sums = ordered.view(len(ordered), -1, layout.group).sum(-1, dtype=torch.float32)
        return y + sums @ torch.add(minimums, scales, alpha=ZERO).T


EIGHT_BITS = "eight_bits"
"""The name of `_weight_int8pack_mm` in a TorchProduct."""
FOUR_BITS: dict[str, Int4Call] = {one.__name__: one for one in (scales_with_zeros, scales_and_zeros)}
"""The calls of operators with 4 bits, by their name in a TorchProduct."""


def torch_product(found: TorchProduct, device: torch.device) -> TorchInt8 | TorchInt4:
    """Return a product that a trial found, without another trial."""
    if found.operator == EIGHT_BITS:
        return TorchInt8(found.step)
    types = frozenset(dtype for dtype in TYPES if _name(dtype) in found.types)
    order = torch.tensor(found.order, device=device)
    return TorchInt4(FOUR_BITS[found.operator], order, found.step, types, found.most)


def try_int8(device: torch.device) -> list[TorchProduct]:
    """Return torch's product with int8 weights on this device; none without a correct one."""
    right = (step for step, rows in STEPS.items() if agrees(TorchInt8(step), "int8", rows, torch.bfloat16, device))
    return [TorchProduct("int8", EIGHT_BITS, step) for step in itertools.islice(right, 1)]


def try_int4(device: torch.device) -> list[TorchProduct]:
    """Return torch's products with weights of 4 bits on this device, those that are correct and faster than to
    dequantise them: at most one for each storage."""
    found: dict[Storage, TorchProduct] = {}
    for name, call in FOUR_BITS.items():
        try:
            products = TorchInt4(call, order_of_columns(call, device))
        except RuntimeError:
            continue
        for one in _tried(name, products, device):
            found.setdefault(one.storage, one)
    return list(found.values())


def _tried(name: str, products: TorchInt4, device: torch.device) -> Iterator[TorchProduct]:
    for storage in sorted(TAKEN):
        try:
            correct = _fitting(products, storage, device)
            most = 0 if correct is None else faster_up_to(correct, storage, device)
        except RuntimeError:
            continue
        if correct is not None and most:
            types = tuple(_name(dtype) for dtype in TYPES if dtype in correct.types)
            yield TorchProduct(storage, name, correct.step, tuple(products.order.tolist()), types, most)


def order_of_columns(call: Int4Call, device: torch.device) -> Tensor:
    """Return our column (128,) at each place of a run, read off the product of two identity matrices.

    Raises RuntimeError if the device cannot multiply so.
    """
    one = torch.eye(RUN)
    weight = _on(pack("int4g32", one, torch.ones(RUN, LAYOUTS["int4g32"].groups(RUN))), device)
    as_it_lies = TorchInt4(call, torch.arange(RUN, device=device))
    return as_it_lies.product(weight, one.to(device, torch.bfloat16)).float().argmax(1)


def agrees(
    products: TorchInt8 | TorchInt4, storage: Storage, rows: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Return whether products of one and several inputs of this type match those of the dequantised weight."""
    weight = random_weight(storage, rows, COLUMNS, device)
    exact = weight.dequantize(torch.float32).cpu()
    inputs = torch.randn(MOST_FEW, COLUMNS, generator=torch.Generator().manual_seed(0)).to(dtype)
    allowed = AGREES_IN_FP32 if dtype == torch.float32 else AGREES
    try:
        found = [products.product(weight, inputs[:m].to(device)).float().cpu() for m in (1, 3, MOST_FEW)]
    except RuntimeError:
        return False
    expected = inputs.float() @ exact.T
    return all(bool((one - expected[: len(one)]).abs().max() <= allowed * expected.abs().max()) for one in found)


def faster_up_to(products: TorchInt4, storage: Storage, device: torch.device) -> int:
    """Return up to how many input rows this takes less time than dequantising the weight first; 0 = never."""
    weight, most = random_weight(storage, SIDE, SIDE, device), 0
    dtype = next(one for one in TYPES if one in products.types)
    for m in (1, 4, MOST_FEW):
        x = torch.ones(m, SIDE, dtype=dtype, device=device)
        ways = (lambda x: products.product(weight, x), lambda x: F.linear(x, weight.dequantize(dtype)))
        ours, dequantised = (min(seconds_of(way, x) for _ in range(ROUNDS)) for way in ways)
        if ours >= dequantised:
            break
        most = m
    return most


def _fitting(products: TorchInt4, storage: Storage, device: torch.device) -> TorchInt4 | None:
    """Return the products for the smallest step, and all types, for which they are correct; None if for none."""
    for step, rows in STEPS.items():
        types = frozenset(dtype for dtype in TYPES if agrees(products, storage, rows, dtype, device))
        if types:
            return replace(products, step=step, types=types)
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rows_at_once(weight: QuantizedWeight) -> int:
    """Return how many rows' scales to bring into torch's form at a time: several steps take 12 bytes each."""
    scales = LAYOUTS[weight.format].groups(weight.shape[1])
    return max(1, SCALES_BYTES // (12 * scales) // RUN) * RUN


def seconds_of(work: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the time of a product with x (M, K), including the wait for its result."""
    start = time.perf_counter()
    work(x).cpu()
    return time.perf_counter() - start


def _on(weight: QuantizedWeight, device: torch.device) -> QuantizedWeight:
    scales = None if weight.scales is None else weight.scales.to(device)
    return replace(weight, data=weight.data.to(device), scales=scales)


def _padded(x: Tensor, width: int) -> Tensor:
    """Return x (M, K) as contiguous (M, width), zero beyond K."""
    return x.contiguous() if x.shape[1] == width else F.pad(x, (0, width - x.shape[1]))
