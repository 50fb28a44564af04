"""How the weights of one linear lie in memory: row by row, so that any range of rows is a weight by itself.

- bf16: as stored (bf16, fp16 or fp32 keep their type).
- of 8 bits: signed bytes, or the bits of floats (e4m3, never NaN): (N, columns padded with zeros).
- of 4 bits: two weights a byte (N, padded columns / 2); byte i of every 64 holds column i in its low half and column
  64 + i in its high half.
- of 6 bits: 96 bytes for 128 columns; 64 with the four lower bits as above, then 32 of whose bytes the i-th holds the
  two upper bits of the columns i, 32 + i, 64 + i and 96 + i, from the lowest bits on.
- the scales of a row: one for each group, then the groups' minimums; where they are `fine`, bytes, followed by the
  factors of fp16 of the scales and of the minimums.

Where a program quantised columns in an order of its own (GPTQ's act-order), they lie in that order, for then groups are
of neighbours; inputs are put into it before they are multiplied.

Which storage has which groups and scales stands in `core.spec.storages`. The same bytes are read by the CPU's kernels,
kept on disk, and sent to a device, where plain torch operations widen them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.column_order import ColumnOrder
from core.kernels.large_pages import empty_on_large_pages
from core.spec import COARSE_COLUMNS, LAYOUTS, FloatStorage, Layout, Storage

HALVES = 128
"""Columns whose values of 4 bits lie in one run of bytes."""
FLOAT8_NAN = 0x7F
"""The bits of a float of eight bits that is no number, the sign apart."""
HALF_OF_FLOAT8 = -0x4080
"""Those bits of fp16 that a float of eight bits has, as a signed number."""
SCALE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fine": torch.int8}
FLOATS: dict[torch.dtype, FloatStorage] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


Scales = Tensor | tuple[Tensor, Tensor]
"""(N, groups) numbers; or where they are fine (N, groups) integers and (N, columns / 256) factors."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The weight of one linear, `shape` = (rows N, columns K); `data` and `scales` as the module says. `format` is the
    storage, and bf16 for numbers of any type. `order`: of the stored columns, None where they lie as they are."""

    format: Storage
    shape: tuple[int, int]
    data: Tensor
    scales: Tensor | None = None
    order: ColumnOrder | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the weight, each (N, ...)."""
        return (self.data,) if self.scales is None else (self.data, self.scales)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all parts together."""
        return sum(part[0].numel() * part.element_size() for part in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.row_bytes * self.shape[0]

    @property
    def storage(self) -> Storage:
        """How the weight really lies in memory: bf16 told apart from fp16 and fp32."""
        return FLOATS[self.data.dtype] if self.format == "bf16" else self.format

    def rows(self, begin: int, end: int) -> QuantizedWeight:
        """Rows [begin, end) as views: nothing is copied, and each part is one contiguous range of bytes."""
        scales = None if self.scales is None else self.scales[begin:end]
        return replace(self, shape=(end - begin, self.shape[1]), data=self.data[begin:end], scales=scales)

    def cut(self, begin: int, end: int) -> QuantizedWeight:
        """Columns [begin, end), cut where `cut_columns` says: numbers as views, scales of groups put together anew."""
        assert self.order is None, "columns in an order of their own are no range"
        layout = LAYOUTS.get(self.format)
        shape = (self.shape[0], end - begin)
        if layout is None:
            return replace(self, shape=shape, data=self.data[:, begin:end])
        first, last = (column * layout.bits // 8 for column in (begin, layout.columns(end)))
        scales = _cut_scales(self.scales, layout, self.shape[1], begin, end) if layout.group else self.scales
        return replace(self, shape=shape, data=self.data[:, first:last], scales=scales)

    def parts(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """The bytes of rows [begin, end), one tensor (rows, ...) for each part, to be laid end to end; each row is
        contiguous, and all are where the weight was not cut."""
        return self.rows(begin, end).tensors

    def unpack(self, buffer: Tensor, begin: int, end: int) -> QuantizedWeight:
        """Rows [begin, end) out of the bytes of `parts` in `buffer` (uint8, any device), as views."""
        views: list[Tensor] = []
        at = 0
        for part in self.parts(begin, end):
            views.append(buffer[at : at + part.nbytes].view(part.dtype).view(part.shape))
            at += part.nbytes
        shape = (end - begin, self.shape[1])
        return replace(self, shape=shape, data=views[0], scales=views[1] if len(views) > 1 else None)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight as (N, K) of `dtype`, on its own device; a view where it is stored so."""
        if self.scales is None:
            return self.data.to(dtype)
        layout, (rows, columns) = LAYOUTS[self.format], self.shape
        values = _values(self.data, layout)
        if layout.group == 0:
            return (values[:, :columns] * self.scales[:, None]).to(dtype)
        scales, minimums = group_scales(self.scales, layout, layout.columns(columns))
        wide = values.view(rows, -1, layout.group) * scales[:, :, None]
        if minimums is not None:
            wide += minimums[:, :, None]
        found = wide.view(rows, -1)[:, :columns].to(dtype)
        return found if self.order is None else self.order.undone(found)


def pack(
    storage: Storage, codes: Tensor, scales: Scales, minimums: Scales | None = None, columns: int | None = None
) -> QuantizedWeight:
    """A weight out of its unpacked parts: w = scale * q (+ minimum), or scale * the code book's q.

    `codes` (N, K), whole groups: of 8 bits -128..127, or float8_e4m3fn; of 4 bits -8..7, or 0..15 with minimums or a
    code book.
    `columns`: how many of the K are the weight's own.
    """
    layout = LAYOUTS[storage]
    rows, given = codes.shape
    width = layout.columns(given)
    if layout.floats:
        codes, scales = _without_nan(codes, scales, layout)
    values = codes.to(torch.int8)
    if width > given:  # else the weight may be used where it lies
        values = F.pad(values, (0, width - given))
    data = values if layout.bits == 8 else packed_bits((values + layout.zero).to(torch.uint8), layout.bits)
    if layout.group == 0:
        assert isinstance(scales, Tensor)
        return QuantizedWeight(storage, (rows, columns or given), data, scales.float().reshape(rows))
    kept = scale_rows(layout, width, scales, minimums)
    return QuantizedWeight(storage, (rows, columns or given), data, kept)


def _without_nan(codes: Tensor, scales: Scales, layout: Layout) -> tuple[Tensor, Tensor]:
    """The bits of floats (N, K), 0 where one is NaN, which then the scale of its group is."""
    assert isinstance(scales, Tensor)
    bits = codes.view(torch.int8)
    broken = bits & FLOAT8_NAN == FLOAT8_NAN
    if not broken.any():
        return bits, scales
    groups = F.pad(broken, (0, -bits.shape[1] % layout.group)).view(len(bits), -1, layout.group).any(2)
    return torch.where(broken, 0, bits), torch.where(groups, torch.nan, scales.float())


def packed_bits(values: Tensor, bits: int) -> Tensor:
    """Values of 4 or 6 bits (N, whole runs of 128) as the bytes that hold them."""
    rows, lows = len(values), (values & 15).view(len(values), -1, 2, HALVES // 2)
    both = lows[:, :, 0] | lows[:, :, 1] << 4
    if bits == 4:
        return both.view(rows, -1)
    highs = (values >> 4).view(rows, -1, 4, HALVES // 4)
    four = highs[:, :, 0] | highs[:, :, 1] << 2 | highs[:, :, 2] << 4 | highs[:, :, 3] << 6
    return torch.cat((both, four), dim=2).view(rows, -1)


def empty(storage: Storage, rows: int, columns: int) -> QuantizedWeight:
    """Memory for a quantised weight."""
    return empty_stack(storage, 1, rows, columns)[0]


def empty_stack(storage: Storage, count: int, rows: int, columns: int) -> list[QuantizedWeight]:
    """Memory for `count` quantised weights of one shape, in one piece."""
    layout = LAYOUTS[storage]
    kind = torch.int8 if layout.bits == 8 else torch.uint8
    data = empty_on_large_pages((count, rows, layout.columns(columns) * layout.bits // 8), kind)
    scale = SCALE_TYPES[layout.scale]
    each = layout.scale_bytes(columns) // scale.itemsize
    scales = empty_on_large_pages((count, rows, each) if layout.group else (count, rows), scale)
    return [QuantizedWeight(storage, (rows, columns), *pair) for pair in zip(data, scales, strict=True)]


def scale_rows(layout: Layout, columns: int, scales: Scales, minimums: Scales | None) -> Tensor:
    """Scales and minimums (N, ...) of rows of `columns` columns, laid one behind the other."""
    assert (minimums is not None) == layout.minimum
    both = [scales] if minimums is None else [scales, minimums]
    if layout.scale != "fine":
        return torch.cat([_padded(one, layout.groups(columns), SCALE_TYPES[layout.scale]) for one in both], dim=1)
    pairs = [one for one in both if not isinstance(one, Tensor)]
    fine = [_padded(one, layout.groups(columns), torch.int8) for one, _ in pairs]
    coarse = [_padded(one, layout.coarse(columns), torch.float16).view(torch.int8) for _, one in pairs]
    return torch.cat([*fine, *coarse], dim=1)


def group_scales(kept: Tensor, layout: Layout, columns: int) -> tuple[Tensor, Tensor | None]:
    """The scales (N, groups) of padded rows of `columns` columns in fp32, and the minimums, if there are any."""
    groups, parts = layout.groups(columns), 2 if layout.minimum else 1
    if layout.scale != "fine":
        wide = kept.float()
    else:
        fine, coarse = kept[:, : parts * groups], kept[:, parts * groups :].contiguous().view(torch.float16)
        shared = coarse.float().view(len(kept), parts, -1).repeat_interleave(groups_of_coarse(layout), dim=2)
        wide = (fine.float().view(len(kept), parts, groups) * shared[:, :, :groups]).view(len(kept), -1)
    return wide[:, :groups], wide[:, groups:] if layout.minimum else None


def _cut_scales(kept: Tensor | None, layout: Layout, columns: int, begin: int, end: int) -> Tensor:
    """The scales and minimums (N, ...) of columns [begin, end) of rows of `columns`."""
    assert kept is not None
    parts, groups, coarse = 2 if layout.minimum else 1, layout.groups(columns), layout.coarse(columns)
    first, last = (layout.columns(column) // layout.group for column in (begin, end))
    blocks = [kept[:, at * groups + first : at * groups + last] for at in range(parts)]
    if coarse:
        shared = kept[:, parts * groups :].view(len(kept), parts, 2 * coarse)
        upper, lower = (2 * -(-column // COARSE_COLUMNS) for column in (begin, end))
        blocks += [shared[:, at, upper:lower] for at in range(parts)]
    return torch.cat(blocks, dim=1)


def groups_of_coarse(layout: Layout) -> int:
    """Groups whose fine scales share one factor."""
    return COARSE_COLUMNS // layout.group


def _values(data: Tensor, layout: Layout) -> Tensor:
    """(N, padded columns) of int8, or fp16 where they are floats, as they are multiplied with the scales."""
    if layout.floats:
        # Put in place in a float of 16 bits, they are 2^-8 of themselves: torch's own conversion is many times slower.
        return (data.to(torch.int16) << 7 & HALF_OF_FLOAT8).view(torch.float16) * 256
    if layout.bits == 8:
        return data
    runs = data.view(len(data), -1, 1, HALVES * layout.bits // 8)
    pairs = runs[..., : HALVES // 2]
    codes = torch.cat((pairs & 15, pairs >> 4), dim=2).view(len(data), -1)
    if layout.bits == 6:
        highs = torch.cat([runs[..., HALVES // 2 :] >> shift & 3 for shift in (0, 2, 4, 6)], dim=2)
        codes = codes | highs.view(len(data), -1) << 4
    if layout.codes:
        return _book(layout.codes, data.device)[codes.long()]
    return codes.to(torch.int8) - layout.zero


@cache
def _book(codes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(codes, dtype=torch.int8, device=device)


def _padded(one: Scales, count: int, dtype: torch.dtype) -> Tensor:
    assert isinstance(one, Tensor)
    return F.pad(one.to(dtype), (0, count - one.shape[1]))
