"""Turning stored weights into the formats that `kernels.weights` describes, without calibration data.

Rows are converted in chunks, so that little more memory than the result's is needed. Where a weight holds NaN or
infinity the scale is not a number, so that it shows in every output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.native_abi import TYPES
from core.kernels.native_library import native
from core.kernels.quantized_weight import QuantizedWeight, empty
from core.spec import INT4_GROUP, ITEM_BYTES, Storage

CHUNK_ELEMENTS = 1 << 20
# A scale is tried that maps a group's largest value to each of these; the one with the least squared error stays.
INT4_ZERO, INT4_COLUMNS = 8, 128
INT4_LEVELS = (-8.0, -7.5, -7.0, -8.5, -6.5)


def quantize(weight: Tensor, format: Storage) -> QuantizedWeight:
    """`weight` (N, K) of any floating type in `format`; a storage of floats keeps it as it is."""
    rows, columns = weight.shape
    if format in ITEM_BYTES:
        return QuantizedWeight("bf16", (rows, columns), weight)
    result = empty(format, rows, columns)
    library = native()
    if library is None or weight.dtype not in TYPES or weight.stride(1) != 1 or weight.device.type != "cpu":
        encode_with_torch(weight, result)
    else:
        assert result.scales is not None
        library.encode(format, weight, result.data, result.scales)
    return result


def encode_with_torch(weight: Tensor, result: QuantizedWeight) -> None:
    """Fill `result` from `weight` (N, K) where the compiled library cannot: slower, else the same."""
    rows, columns = result.shape
    chunk = max(1, CHUNK_ELEMENTS // max(1, columns))
    encode = _encode_int8 if result.format == "int8" else _encode_int4
    for start in range(0, rows, chunk):
        part = result.rows(start, min(start + chunk, rows))
        encode(weight[start : start + chunk].float(), part)


def _encode_int8(weight: Tensor, out: QuantizedWeight) -> None:
    """Symmetric, one scale per row."""
    assert out.scales is not None
    scales = weight.abs().amax(1) / 127
    out.scales.copy_(torch.where(scales.isfinite(), scales, torch.nan))
    values = (weight * _inverse(out.scales)[:, None]).round_().clamp_(-127, 127).nan_to_num_(0)
    out.data.copy_(F.pad(values, (0, out.data.shape[1] - weight.shape[1])))


def _encode_int4(weight: Tensor, out: QuantizedWeight) -> None:
    """Symmetric in groups of 32; the scale is the best of several, each fitted to the values that it rounds to."""
    assert out.scales is not None
    rows, columns = weight.shape
    groups = F.pad(weight, (0, out.scales.shape[1] * INT4_GROUP - columns)).view(-1, INT4_GROUP)
    scales = _fit_int4(groups).to(torch.bfloat16)
    scales = torch.where(groups.isfinite().all(1, keepdim=True), scales, torch.nan)
    out.scales.copy_(scales.view(rows, -1))
    values = _round_int4(groups, scales.float()).nan_to_num_(0).add_(INT4_ZERO).to(torch.uint8)
    pairs = values.view(rows, -1, 2, INT4_COLUMNS // 2)
    out.data.copy_((pairs[:, :, 0] | (pairs[:, :, 1] << 4)).view(rows, -1))


def _fit_int4(groups: Tensor) -> Tensor:
    """Scales (G, 1) for groups (G, 32)."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best_gain = torch.full_like(extreme, -1)
    best = torch.zeros_like(extreme)
    for level in INT4_LEVELS:
        scale, gain = _refit(groups, extreme / level, extreme)
        better = gain > best_gain
        best, best_gain = torch.where(better, scale, best), torch.where(better, gain, best_gain)
    return _refit(groups, best, extreme)[0]


def _refit(groups: Tensor, scales: Tensor, extreme: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares scale for the values that `scales` rounds to, and the squared length that it explains.

    Measured in units of the group's largest value: the squares of very large or small weights leave fp32's range.
    """
    values = _round_int4(groups, scales)
    square = values.square().sum(1, keepdim=True)
    product = (groups * _inverse(extreme) * values).sum(1, keepdim=True)
    fitted = torch.where(square > 0, product / square, 0.0)
    return fitted * extreme, fitted * product


def _round_int4(groups: Tensor, scales: Tensor) -> Tensor:
    return (groups * _inverse(scales)).round_().clamp_(-INT4_ZERO, INT4_ZERO - 1)


def _inverse(scales: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0 or so small that its inverse is infinite."""
    inverse = scales.reciprocal()
    return torch.where(inverse.isinf(), 0.0, inverse)
