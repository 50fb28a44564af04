"""Converts the blocks of a GGUF tensor losslessly to the engine's storages, or to plain numbers.

Each `_<type>` function takes blocks (N, blocks per row, bytes) of uint8 and returns codes, scales and minimums as
`pack` takes them. Bit layouts: ggml-org/ggml, ggml-common.h, and the reference implementation in the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from core.kernels.quantized_weight import QuantizedWeight, Scales, empty, pack
from core.spec import LAYOUTS, Storage
from core.weights.gguf.types import ANY_FINE, BlockType
from core.weights.row_chunks import row_chunks

Parts = tuple[Tensor, Scales, Scales | None]
NUMBERS = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I8": torch.int8,
    "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


def packed(parts: Sequence[tuple[Tensor, BlockType]], storage: Storage) -> QuantizedWeight:
    """Repack the rows of blocks (N, bytes of a row) of all parts, one part after the other, into a storage that keeps
    them exactly."""
    columns = columns_of(*parts[0])
    result = empty(storage, sum(len(raw) for raw, _ in parts), columns)
    first = 0
    for raw, kind in parts:
        for begin, end in row_chunks(len(raw), columns):
            own = unpacked(raw[begin:end], kind)
            some = pack(storage, *(_regrouped(own, kind) if storage == ANY_FINE else own))
            for target, source in zip(result.rows(first + begin, first + end).tensors, some.tensors, strict=True):
                target.copy_(source)
        first += len(raw)
    return result


def columns_of(raw: Tensor, kind: BlockType) -> int:
    """Return the number of values in a row of blocks (N, bytes of a row)."""
    return raw.shape[1] // kind.nbytes * kind.elements


def numbers(raw: Tensor, kind: BlockType, dtype: torch.dtype) -> Tensor:
    """Convert rows of blocks to numbers (N, K) of `dtype`; a view where they are stored in that type."""
    if kind.is_number:
        # A view of a wider type needs aligned bytes; the file format guarantees the alignment.
        return raw.view(NUMBERS[kind.name]).to(dtype)
    rows, columns = len(raw), columns_of(raw, kind)
    result = torch.empty((rows, columns), dtype=dtype)
    for begin, end in row_chunks(rows, columns):
        result[begin:end] = _widened(raw[begin:end], kind)
    return result


def unpacked(raw: Tensor, kind: BlockType) -> Parts:
    """Return codes (N, K), scales and minimums of rows of blocks."""
    return UNPACK[kind.name](raw.reshape(len(raw), -1, kind.nbytes))


def _regrouped(parts: Parts, kind: BlockType) -> Parts:
    """Return parts with fine scales in groups of 16 with minimums: -zero * scale where the type has none."""
    codes, scales, minimums = parts
    assert kind.storage is not None
    assert isinstance(scales, tuple)
    layout = LAYOUTS[kind.storage]
    if minimums is None:
        codes, minimums = codes + layout.zero, (scales[0], scales[1] * -layout.zero)
    assert isinstance(minimums, tuple)
    more = layout.group // LAYOUTS[ANY_FINE].group
    (fine, factors), (low, others) = scales, minimums
    return codes, (fine.repeat_interleave(more, 1), factors), (low.repeat_interleave(more, 1), others)


def _widened(raw: Tensor, kind: BlockType) -> Tensor:
    if kind.storage is not None:
        return packed([(raw, kind)], kind.storage).dequantize(torch.float32)
    # The 1- to 3-bit types use large lookup tables, which the `gguf` package has.
    import gguf

    with np.errstate(all="ignore"):  # NaN and infinite scales give NaN and infinity
        return torch.from_numpy(gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind.name]))


def _halves(part: Tensor) -> Tensor:
    """Split bytes (N, blocks, n) into (N, blocks, 2, n): all low nibbles, then all high nibbles."""
    return torch.stack((part & 15, part >> 4), dim=2)


def _crumbs(part: Tensor, width: int) -> Tensor:
    """Split bytes (N, blocks, n) into 2-bit values (N, blocks, n / width, 4, width), the lowest bits of each run
    first."""
    runs = part.reshape(*part.shape[:2], -1, 1, width)
    return runs >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3


def _bits(part: Tensor) -> Tensor:
    """Split bytes (N, blocks, width) into single bits (N, blocks, 8, width), the lowest bit of all bytes first."""
    return part[:, :, None] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1


def _fp16(part: Tensor) -> Tensor:
    """Read two bytes per block (N, blocks, 2) as fp16 (N, blocks)."""
    return part.contiguous().view(torch.float16)[:, :, 0]


def _row(codes: Tensor) -> Tensor:
    return codes.reshape(len(codes), -1)


def _fifth(part: Tensor) -> Tensor:
    """Return the fifth bits of 32 weights, shifted to value 16, from 4 bytes: (N, blocks, 4) -> (N, blocks, 32)."""
    return (part[:, :, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).reshape(*part.shape[:2], 32) << 4


def _low(part: Tensor) -> Tensor:
    return _halves(part).reshape(*part.shape[:2], -1)


def _q4_0(blocks: Tensor) -> Parts:
    return _row(_low(blocks[:, :, 2:]).to(torch.int8) - 8), _fp16(blocks[:, :, :2]), None


def _q4_1(blocks: Tensor) -> Parts:
    return _row(_low(blocks[:, :, 4:])), _fp16(blocks[:, :, :2]), _fp16(blocks[:, :, 2:4])


def _q5_0(blocks: Tensor) -> Parts:
    codes = _low(blocks[:, :, 6:]) | _fifth(blocks[:, :, 2:6])
    return _row(codes.to(torch.int8) - 16), _fp16(blocks[:, :, :2]), None


def _q5_1(blocks: Tensor) -> Parts:
    codes = _low(blocks[:, :, 8:]) | _fifth(blocks[:, :, 4:8])
    return _row(codes), _fp16(blocks[:, :, :2]), _fp16(blocks[:, :, 2:4])


def _q8_0(blocks: Tensor) -> Parts:
    return _row(blocks[:, :, 2:].view(torch.int8)), _fp16(blocks[:, :, :2]), None


def _q2_k(blocks: Tensor) -> Parts:
    scales = blocks[:, :, :16]
    fine, low = _row((scales & 15).to(torch.int8)), _row((scales >> 4).to(torch.int8))
    d, dmin = _fp16(blocks[:, :, 80:82]), _fp16(blocks[:, :, 82:84])
    return _row(_crumbs(blocks[:, :, 16:80], 32)), (fine, d), (low, -dmin)


def _q3_k(blocks: Tensor) -> Parts:
    # Where the third bit is not set, 4 is subtracted.
    high = _bits(blocks[:, :, :32]).reshape(*blocks.shape[:2], 2, 4, 32)
    codes = _crumbs(blocks[:, :, 32:96], 32).to(torch.int8) - ((high ^ 1) << 2).to(torch.int8)
    part = blocks[:, :, 96:108]
    low = torch.cat((part[:, :, :8] & 15, part[:, :, :8] >> 4), dim=2)
    upper = (part[:, :, None, 8:] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3).reshape(low.shape)
    fine = (low | upper << 4).to(torch.int8) - 32
    return _row(codes), (_row(fine), _fp16(blocks[:, :, 108:110])), None


def _six_bits(part: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack the eight scales and eight minimums of a Q4_K or Q5_K block from 12 bytes: two (N, 8 * blocks)."""
    first, second, upper = part[:, :, :4], part[:, :, 4:8], part[:, :, 8:]
    scales = torch.cat((first & 63, upper & 15 | first >> 6 << 4), dim=2)
    low = torch.cat((second & 63, upper >> 4 | second >> 6 << 4), dim=2)
    return _row(scales.to(torch.int8)), _row(low.to(torch.int8))


def _q4_k(blocks: Tensor) -> Parts:
    d, dmin = _fp16(blocks[:, :, :2]), _fp16(blocks[:, :, 2:4])
    fine, low = _six_bits(blocks[:, :, 4:16])
    return _row(_halves_of_32(blocks[:, :, 16:])), (fine, d), (low, -dmin)


def _q5_k(blocks: Tensor) -> Parts:
    d, dmin = _fp16(blocks[:, :, :2]), _fp16(blocks[:, :, 2:4])
    fine, low = _six_bits(blocks[:, :, 4:16])
    codes = _halves_of_32(blocks[:, :, 48:]) | _bits(blocks[:, :, 16:48]).reshape(*blocks.shape[:2], 4, 2, 32) << 4
    return _row(codes), (fine, d), (low, -dmin)


def _halves_of_32(part: Tensor) -> Tensor:
    """Split (N, blocks, 128) into (N, blocks, 4, 2, 32): of every 32 bytes the low nibbles, then the high ones."""
    runs = part.reshape(*part.shape[:2], 4, 32)
    return torch.stack((runs & 15, runs >> 4), dim=3)


def _q6_k(blocks: Tensor) -> Parts:
    low = blocks[:, :, :128].reshape(*blocks.shape[:2], 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), dim=3).reshape(*blocks.shape[:2], 2, 4, 32)
    codes = (low | _crumbs(blocks[:, :, 128:192], 32) << 4).to(torch.int8) - 32
    return _row(codes), (_row(blocks[:, :, 192:208].view(torch.int8)), _fp16(blocks[:, :, 208:210])), None


def _iq4_nl(blocks: Tensor) -> Parts:
    return _row(_low(blocks[:, :, 2:])), _fp16(blocks[:, :, :2]), None


def _iq4_xs(blocks: Tensor) -> Parts:
    high = blocks[:, :, 2:4, None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8) & 3
    low = torch.stack((blocks[:, :, 4:8] & 15, blocks[:, :, 4:8] >> 4), dim=3)
    fine = (low.reshape(*blocks.shape[:2], 8) | high.reshape(*blocks.shape[:2], 8) << 4).to(torch.int8) - 32
    runs = blocks[:, :, 8:].reshape(*blocks.shape[:2], 8, 16)
    return _row(torch.cat((runs & 15, runs >> 4), dim=3)), (_row(fine), _fp16(blocks[:, :, :2])), None


def _mxfp4(blocks: Tensor) -> Parts:
    # The code book is doubled, so the scales are halved: 2^(e - 128), which bf16 represents for every e.
    scales = torch.exp2(blocks[:, :, 0].float() - 128)
    return _row(_low(blocks[:, :, 1:])), scales, None


def _nvfp4(blocks: Tensor) -> Parts:
    # The scales are unsigned, and the NaN code means 0.
    kept = torch.where(blocks[:, :, :4] == 127, 0, blocks[:, :, :4] & 127)
    scales = kept.contiguous().view(torch.float8_e4m3fn).float() / 2
    runs = blocks[:, :, 4:].reshape(*blocks.shape[:2], 4, 8)
    return _row(torch.cat((runs & 15, runs >> 4), dim=3)), _row(scales), None


UNPACK: dict[str, Callable[[Tensor], Parts]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}  # fmt: skip
