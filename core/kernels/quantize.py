"""Quantises weights into the formats that `quantized_weight` describes, without calibration data.

Rows are converted in chunks, so that peak memory is little more than the result. Where a weight holds NaN or infinity,
the scale becomes NaN, so that the error shows in every output.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.native_abi import TYPES
from core.kernels.native_library import native
from core.kernels.quantized_weight import QuantizedWeight, empty, group_scales, packed_bits
from core.spec import COARSE_COLUMNS, GROUP, ITEM_BYTES, LAYOUTS, Layout, Storage

CHUNK_ELEMENTS = 1 << 20
TRIED = 16
"""Rounding grids tried per group; for each, the scale (and minimum) of least squared error is computed."""
FINEST, TINY = 127, 1e-6


def quantize(weight: Tensor, format: Storage) -> QuantizedWeight:
    """Quantise `weight` (N, K) of any floating type to `format`; a float storage keeps the tensor as it is."""
    rows, columns = weight.shape
    if format in ITEM_BYTES:
        return QuantizedWeight("bf16", (rows, columns), weight)
    return quantize_pieces([weight], format, rows, columns)


def quantize_into(weight: Tensor, result: QuantizedWeight) -> QuantizedWeight:
    """Quantise `weight` (N, K) into the existing memory of `result`, of the same shape; return `result`."""
    _encode(weight, result)
    return result


def quantize_pieces(pieces: Iterable[Tensor], format: Storage, rows: int, columns: int) -> QuantizedWeight:
    """Quantise a weight (N, K) given as consecutive `pieces` (n, K) of rows; one piece is in memory at a time."""
    result, begin = empty(format, rows, columns), 0
    for piece in pieces:
        _encode(piece, result.rows(begin, begin := begin + len(piece)))
    return result


def _encode(weight: Tensor, result: QuantizedWeight) -> None:
    library = native()
    if library is None or weight.dtype not in TYPES or weight.stride(1) != 1 or weight.device.type != "cpu":
        encode_with_torch(weight, result)
    else:
        assert result.scales is not None
        library.encode(result.format, weight, result.data, result.scales)


def encode_with_torch(weight: Tensor, result: QuantizedWeight) -> None:
    """Fill `result` from `weight` (N, K) without the compiled library: the same values, slower."""
    rows, columns = result.shape
    chunk = max(1, CHUNK_ELEMENTS // max(1, columns))
    encode = _encode_int8 if result.format == "int8" else _encode_fine
    for start in range(0, rows, chunk):
        part = result.rows(start, min(start + chunk, rows))
        encode(weight[start : start + chunk].float(), part)


def _encode_int8(weight: Tensor, out: QuantizedWeight) -> None:
    """Quantise symmetrically, with one scale per row."""
    assert out.scales is not None
    scales = weight.abs().amax(1) / 127
    out.scales.copy_(torch.where(scales.isfinite(), scales, torch.nan))
    values = (weight * _inverse(out.scales)[:, None]).round_().clamp_(-127, 127).nan_to_num_(0)
    out.data.copy_(F.pad(values, (0, out.data.shape[1] - weight.shape[1])))


def _encode_fine(weight: Tensor, out: QuantizedWeight) -> None:
    """Quantise in groups of 32 columns with int8 scales, times an fp16 factor per 256 columns; 4 bits add minimums."""
    assert out.scales is not None
    layout, rows = LAYOUTS[out.format], len(weight)
    width = layout.columns(weight.shape[1])
    groups = F.pad(weight, (0, width - weight.shape[1])).view(-1, GROUP)
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True)).abs()
    scales, minimums = (_fit_shifted if layout.minimum else _fit_even)(groups * _inverse(extreme))
    broken = _by_coarse(~groups.isfinite().all(1).view(rows, -1), layout).any(2)
    numbers = [(one * extreme).view(rows, -1) for one in ((scales, minimums) if layout.minimum else (scales,))]
    fine, coarse = zip(*(_fine(one, broken, layout) for one in numbers), strict=True)
    out.scales.copy_(torch.cat([*fine, *(one.view(torch.int8) for one in coarse)], dim=1))
    scale, low = group_scales(out.scales, layout, width)
    shifted = groups.view(rows, -1, GROUP) - (0 if low is None else low[:, :, None])
    least = -layout.zero
    values = (
        (shifted * _inverse(scale)[:, :, None]).round_().nan_to_num_(0).clamp_(least, least + (1 << layout.bits) - 1)
    )
    out.data.copy_(packed_bits((values - least).to(torch.uint8).view(rows, -1), layout.bits))


def _fit_shifted(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Fit scales and minimums (G, 1) for values 0..15 to groups (G, 32), which are in units of their extremes.

    Errors are weighted by sqrt(w^2 + mean(w^2)), so that those of large weights count more.
    """
    weights = (groups.square().mean(1, keepdim=True) + groups.square()).sqrt()
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    all_, first = weights.sum(1, keepdim=True), (weights * groups).sum(1, keepdim=True)
    best, best_gain = ((high - low) / 15, low), torch.full_like(low, -1)
    for tried in range(TRIED):
        values = ((groups - low) * ((14 + 0.1 * tried) * _inverse(high - low))).round_().clamp_(0, 15)
        weighted = weights * values
        one, two = weighted.sum(1, keepdim=True), (weighted * values).sum(1, keepdim=True)
        product = (weighted * groups).sum(1, keepdim=True)
        determinant = all_ * two - one * one
        fit = (all_ * product - first * one) / determinant, (two * first - one * product) / determinant
        gain = torch.where(determinant > TINY * all_ * two, fit[0] * product + fit[1] * first, -1)
        better = gain > best_gain
        best = torch.where(better, fit[0], best[0]), torch.where(better, fit[1], best[1])
        best_gain = torch.where(better, gain, best_gain)
    return best


def _fit_even(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Fit scales without minimums, for values -32..31; otherwise as `_fit_shifted`."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best, best_gain = torch.zeros_like(extreme), torch.full_like(extreme, -1)
    for tried in range(TRIED):
        values = (groups * (-(30.5 + 0.2 * tried) * extreme)).round_().clamp_(-32, 31)
        square, product = values.square().sum(1, keepdim=True), (values * groups).sum(1, keepdim=True)
        gain = torch.where(square > 0, product.square() / square, -1)
        better = gain > best_gain
        best, best_gain = torch.where(better, product / square, best), torch.where(better, gain, best_gain)
    return best, torch.zeros_like(best)


def _fine(numbers: Tensor, broken: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return numbers (N, groups) as int8 steps, and the fp16 factors (N, coarse), rounded up so that no step exceeds
    FINEST. `broken` (N, coarse): where the factor must be NaN."""
    largest = _by_coarse(numbers, layout).abs().amax(2)
    factors = (largest / FINEST).half()
    up = torch.where(factors.float() * FINEST < largest, (factors.view(torch.int16) + 1).view(torch.half), factors)
    spread = up.float().repeat_interleave(COARSE_COLUMNS // GROUP, 1)[:, : numbers.shape[1]]
    steps = (numbers * _inverse(spread)).round_().nan_to_num_(0).clamp_(-FINEST, FINEST).to(torch.int8)
    return steps, torch.where(broken, torch.nan, up.float()).half()


def _by_coarse(numbers: Tensor, layout: Layout) -> Tensor:
    """Reshape (N, groups) to (N, coarse, groups that share a factor), padded with zeros."""
    shared = COARSE_COLUMNS // layout.group
    return F.pad(numbers, (0, -numbers.shape[1] % shared)).view(len(numbers), -1, shared)


def _inverse(scales: Tensor) -> Tensor:
    """Return 1 / scale, and 0 where the inverse is infinite (a scale of 0 or a tiny one)."""
    inverse = scales.reciprocal()
    return torch.where(inverse.isinf(), 0.0, inverse)
