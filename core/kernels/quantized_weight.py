"""The memory layout of a linear's weight: row by row, so that any range of rows is itself a weight.

- bf16: as stored (bf16, fp16 or fp32 keep their type).
- 8 bits: signed bytes, or the bits of floats (e4m3, never NaN): (N, columns padded with zeros).
- 4 bits: two weights per byte (N, padded columns / 2); byte i of each 16 holds column i of 32 in its low nibble and
  column 16 + i in its high nibble, as in GGUF's Q4_0.
- 6 bits: 96 bytes for 128 columns: 64 bytes with the four lower bits as above, then 32 bytes of which byte i holds the
  two upper bits of columns i, 32 + i, 64 + i and 96 + i, from the lowest bits on.
- the scales of a row: one per group, then the groups' minimums. `fine` scales and minimums are int8, followed by the
  fp16 factors of the scales and of the minimums.

A weight that was quantised in another column order (GPTQ's act-order) is stored in that order, because groups are then
adjacent columns; inputs are permuted before the product.

`core.spec.storages` lists the groups and scales of each storage. The CPU kernels read these bytes, the disk cache keeps
them, and devices receive them unchanged and dequantise them with plain torch operations.
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

RUN = 128
"""Columns whose 6-bit values share one run of bytes."""
HALF = 16
"""Adjacent columns in the low nibbles of as many bytes; their high nibbles hold the columns that follow."""
FLOAT8_NAN = 0x7F
"""The bits of a float8 (e4m3fn) NaN, without the sign."""
HALF_OF_FLOAT8 = -0x4080
"""Mask of the fp16 bits that a float8 occupies once shifted into place, as a signed number."""
SCALE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fine": torch.int8}
FLOATS: dict[torch.dtype, FloatStorage] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


Scales = Tensor | tuple[Tensor, Tensor]
"""(N, groups) numbers; for `fine` scales, (N, groups) integers and (N, columns / 256) factors."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The weight of one linear, `shape` = (rows N, columns K); the module docstring describes `data` and `scales`.
    `format` is the storage, and bf16 for floats of any type. `order`: the permutation of the stored columns, None if
    there is none."""

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
        """Bytes of one row, data and scales together."""
        return sum(part[0].numel() * part.element_size() for part in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.row_bytes * self.shape[0]

    @property
    def storage(self) -> Storage:
        """The actual storage: unlike `format`, it tells bf16, fp16 and fp32 apart."""
        return FLOATS[self.data.dtype] if self.format == "bf16" else self.format

    def rows(self, begin: int, end: int) -> QuantizedWeight:
        """Return rows [begin, end) as views: nothing is copied, and each tensor is one contiguous range of bytes."""
        scales = None if self.scales is None else self.scales[begin:end]
        return replace(self, shape=(end - begin, self.shape[1]), data=self.data[begin:end], scales=scales)

    def cut(self, begin: int, end: int) -> QuantizedWeight:
        """Return columns [begin, end), whose bounds come from `cut_columns`: data as views, group scales rearranged."""
        assert self.order is None, "columns in an order of their own are no range"
        layout = LAYOUTS.get(self.format)
        shape = (self.shape[0], end - begin)
        if layout is None:
            return replace(self, shape=shape, data=self.data[:, begin:end])
        first, last = (column * layout.bits // 8 for column in (begin, layout.columns(end)))
        scales = _cut_scales(self.scales, layout, self.shape[1], begin, end) if layout.group else self.scales
        return replace(self, shape=shape, data=self.data[:, first:last], scales=scales)

    def parts(self, begin: int, end: int) -> tuple[Tensor, ...]:
        """Return the tensors (rows, ...) of rows [begin, end), which callers copy end to end. Each row is contiguous;
        whole tensors are so only if the weight was not cut by columns."""
        return self.rows(begin, end).tensors

    def unpack(self, buffer: Tensor, begin: int, end: int) -> QuantizedWeight:
        """Return rows [begin, end) as views of `buffer` (uint8, any device), which holds the bytes of `parts`."""
        views: list[Tensor] = []
        at = 0
        for part in self.parts(begin, end):
            views.append(buffer[at : at + part.nbytes].view(part.dtype).view(part.shape))
            at += part.nbytes
        shape = (end - begin, self.shape[1])
        return replace(self, shape=shape, data=views[0], scales=views[1] if len(views) > 1 else None)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as (N, K) of `dtype` on its own device; a view if it is stored in that type."""
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
    """Build a weight from unpacked parts: w = scale * q (+ minimum), or scale * codebook[q].

    `codes` (N, K), K a multiple of the group: for 8 bits -128..127 or float8_e4m3fn; for 4 bits -8..7, or 0..15 with
    minimums or a code book. `columns`: how many of the K columns belong to the weight, the rest being padding.
    """
    layout = LAYOUTS[storage]
    rows, given = codes.shape
    width = layout.columns(given)
    if layout.floats:
        codes, scales = _without_nan(codes, scales, layout)
    values = codes.to(torch.int8)
    if width > given:  # otherwise the codes are used without a copy
        values = F.pad(values, (0, width - given))
    data = values if layout.bits == 8 else packed_bits((values + layout.zero).to(torch.uint8), layout.bits)
    if layout.group == 0:
        assert isinstance(scales, Tensor)
        return QuantizedWeight(storage, (rows, columns or given), data, scales.float().reshape(rows))
    kept = scale_rows(layout, width, scales, minimums)
    return QuantizedWeight(storage, (rows, columns or given), data, kept)


def _without_nan(codes: Tensor, scales: Scales, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the bits of float8 codes (N, K) with NaNs replaced by 0, and scales that are NaN for groups with NaNs."""
    assert isinstance(scales, Tensor)
    bits = codes.view(torch.int8)
    broken = bits & FLOAT8_NAN == FLOAT8_NAN
    if not broken.any():
        return bits, scales
    groups = F.pad(broken, (0, -bits.shape[1] % layout.group)).view(len(bits), -1, layout.group).any(2)
    return torch.where(broken, 0, bits), torch.where(groups, torch.nan, scales.float())


def packed_bits(values: Tensor, bits: int) -> Tensor:
    """Pack values of 4 or 6 bits (N, K), K a multiple of 128, into bytes."""
    rows, lows = len(values), (values & 15).view(len(values), -1, 2, HALF)
    both = lows[:, :, 0] | lows[:, :, 1] << 4
    if bits == 4:
        return both.view(rows, -1)
    highs = (values >> 4).view(rows, -1, 4, RUN // 4)
    four = highs[:, :, 0] | highs[:, :, 1] << 2 | highs[:, :, 2] << 4 | highs[:, :, 3] << 6
    return torch.cat((both.view(rows, -1, RUN // 2), four), dim=2).view(rows, -1)


def empty(storage: Storage, rows: int, columns: int) -> QuantizedWeight:
    """Allocate a quantised weight, uninitialised."""
    return empty_stack(storage, 1, rows, columns)[0]


def empty_stack(storage: Storage, count: int, rows: int, columns: int) -> list[QuantizedWeight]:
    """Allocate `count` quantised weights of one shape in one piece, uninitialised."""
    layout = LAYOUTS[storage]
    kind = torch.int8 if layout.bits == 8 else torch.uint8
    data = empty_on_large_pages((count, rows, layout.columns(columns) * layout.bits // 8), kind)
    scale = SCALE_TYPES[layout.scale]
    each = layout.scale_bytes(columns) // scale.itemsize
    scales = empty_on_large_pages((count, rows, each) if layout.group else (count, rows), scale)
    return [QuantizedWeight(storage, (rows, columns), *pair) for pair in zip(data, scales, strict=True)]


def reordered(weight: QuantizedWeight, rows: Tensor) -> QuantizedWeight:
    """Return a weight whose row i is row rows[i] of `weight`."""
    result = empty(weight.format, *weight.shape)
    for target, source in zip(result.tensors, weight.tensors, strict=True):
        torch.index_select(source, 0, rows, out=target)
    return result


def scale_rows(layout: Layout, columns: int, scales: Scales, minimums: Scales | None) -> Tensor:
    """Concatenate scales and minimums (N, ...) of rows of `columns` columns in their storage layout."""
    assert (minimums is not None) == layout.minimum
    both = [scales] if minimums is None else [scales, minimums]
    if layout.scale != "fine":
        return torch.cat([_padded(one, layout.groups(columns), SCALE_TYPES[layout.scale]) for one in both], dim=1)
    pairs = [one for one in both if not isinstance(one, Tensor)]
    fine = [_padded(one, layout.groups(columns), torch.int8) for one, _ in pairs]
    coarse = [_padded(one, layout.coarse(columns), torch.float16).view(torch.int8) for _, one in pairs]
    return torch.cat([*fine, *coarse], dim=1)


def group_scales(kept: Tensor, layout: Layout, columns: int) -> tuple[Tensor, Tensor | None]:
    """Return scales (N, groups) and minimums, if any, of padded rows of `columns` columns in fp32."""
    groups, parts = layout.groups(columns), 2 if layout.minimum else 1
    if layout.scale != "fine":
        wide = kept.float()
    else:
        fine, coarse = kept[:, : parts * groups], kept[:, parts * groups :].contiguous().view(torch.float16)
        shared = coarse.float().view(len(kept), parts, -1).repeat_interleave(groups_of_coarse(layout), dim=2)
        wide = (fine.float().view(len(kept), parts, groups) * shared[:, :, :groups]).view(len(kept), -1)
    return wide[:, :groups], wide[:, groups:] if layout.minimum else None


def _cut_scales(kept: Tensor | None, layout: Layout, columns: int, begin: int, end: int) -> Tensor:
    """Return the scales and minimums (N, ...) of columns [begin, end) of rows with `columns` columns."""
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
    """Return the number of groups whose fine scales share one factor."""
    return COARSE_COLUMNS // layout.group


def _values(data: Tensor, layout: Layout) -> Tensor:
    """Return the unscaled values (N, padded columns): int8, or fp16 for float8 storages."""
    if layout.floats:
        # Shifted into fp16's fields, a float8 reads as 2^-8 of its value; torch's own conversion is many times slower.
        return (data.to(torch.int16) << 7 & HALF_OF_FLOAT8).view(torch.float16) * 256
    if layout.bits == 8:
        return data
    runs = data.view(len(data), -1, 1, RUN * layout.bits // 8)
    both = runs[..., : RUN // 2].reshape(len(data), -1, HALF)
    codes = torch.cat((both & 15, both >> 4), dim=-1).view(len(data), -1)
    if layout.bits == 6:
        highs = torch.cat([runs[..., RUN // 2 :] >> shift & 3 for shift in (0, 2, 4, 6)], dim=2)
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
