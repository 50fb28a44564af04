"""Integer weights: GPTQ, AWQ, compressed-tensors, and int8 with a scale per row."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from core.errors import UnsupportedModel
from core.sentence import sentence
from core.spec import LAYOUTS, Storage
from core.weights.stored.coded import Coded
from core.weights.stored.floats import block_of, grid
from core.weights.stored.settings import Parts, Settings, number, weight_groups
from core.weights.stored.words import BYTE, unpacked

WORD = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The position of each of eight neighbours within AWQ's words."""
INT8_FULL = 127
READABLE_BITS = (2, 4, 8)
BY_ROW = (1, 0)
"""The default block: one row, groups of any number of columns."""
SYMMETRIC: dict[torch.dtype, Storage] = {
    torch.bfloat16: "int4g32b",
    torch.float16: "int4g32",
}
"""The storage of symmetric 4-bit codes, by the type of their scales."""


def gptq(parts: Parts, settings: Settings) -> Coded:
    """Decode GPTQ: `qweight` (K / 8, N) and zero points, which the first version of the format stores minus one."""
    scales, zeros = parts["scales"], parts["zeros"]
    bits = WORD * zeros.shape[-1] // max(1, scales.shape[-1])
    _check_bits(bits)
    if _is_less_one(zeros, bits, settings):
        # Added to whole words, as it was subtracted: a zero point of 0 has borrowed from its neighbour.
        zeros = zeros + _ones(bits)
    codes = unpacked(parts["codes"].t(), bits)
    return _ordered(_grouped(codes, scales, unpacked(zeros, bits), bits, settings), parts.get("order"), settings)


def awq(parts: Parts, settings: Settings) -> Coded:
    """Decode AWQ: `qweight` (K, N / 8), eight outputs per word, permuted."""
    bits = WORD * parts["codes"].shape[-1] // max(1, parts["scales"].shape[-1])
    if bits != 4:
        raise _unknown_bits(bits)
    codes, zeros = (_awq_columns(parts[role]) for role in ("codes", "zeros"))
    return _grouped(codes.t().contiguous(), parts["scales"], zeros, bits, settings)


def words(parts: Parts, settings: Settings) -> Coded:
    """Decode compressed-tensors: codes (N, K / 8) in words, offset by their zero; zero points are optional tensors."""
    scales, codes = parts["scales"], parts["codes"]
    bits = _word_bits(codes, scales, settings)
    _check_bits(bits)
    wide = unpacked(codes, bits)
    zeros = torch.full(scales.shape, float(1 << bits - 1))
    if "zeros" in parts:
        zeros = unpacked(parts["zeros"].t(), bits).t()
    coded = Coded(wide, scales.float(), block_of(wide.shape, scales.shape, BY_ROW), zeros.float())
    return _ordered(_stored(coded, bits, scales.dtype, symmetric="zeros" not in parts), parts.get("order"), settings)


def int8(parts: Parts, _: Settings) -> Coded:
    """Decode bytes with one scale per row, per group of a row, or for all."""
    codes, scales = parts["codes"], grid(parts["scales"])
    zeros = grid(parts["zeros"]) if "zeros" in parts else None
    coded = Coded(codes, scales, block_of(codes.shape, scales.shape, BY_ROW), zeros)
    if zeros is not None:
        return coded
    return replace(coded, storage=_byte_storage(coded, parts["scales"].dtype))


def row_bytes(parts: Parts, _: Settings) -> Coded:
    """Decode bitsandbytes' int8: bytes and each row's maximum, which code 127 stands for."""
    codes, largest = parts["codes"], parts["scales"].float()[:, None]
    scales = largest if largest.is_meta else largest / INT8_FULL
    return Coded(codes, scales, (1, codes.shape[1]), storage="int8")


def _grouped(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, settings: Settings) -> Coded:
    """Combine codes (N, K) with scales and zero points (groups, N)."""
    size = number(settings, "group_size", "q_group_size")
    block = block_of(codes.shape, scales.t().shape, (1, size if size > 0 else codes.shape[1]))
    symmetric = settings.get("sym") is True if zeros.is_meta else bool((zeros == 1 << bits - 1).all())
    coded = Coded(codes, scales.t().float(), block, zeros.t().float())
    return _stored(coded, bits, scales.dtype, symmetric=symmetric)


def _ordered(coded: Coded, order: Tensor | None, settings: Settings) -> Coded:
    """Add the column order if it is not trivial; without a storage unless every group is complete."""
    if order is None or _is_plain(order, coded.block[1], settings):
        return coded
    whole = order.is_meta or torch.equal(order.long().sort().values, torch.arange(len(order)) // coded.block[1])
    return replace(coded, order=order.long(), storage=coded.storage if whole else None)


def _stored(coded: Coded, bits: int, scale: torch.dtype, *, symmetric: bool) -> Coded:
    """Add the storage that keeps the weight exactly, if there is one."""
    if bits == BYTE:
        storage = _byte_storage(coded, scale) if symmetric else None
    else:
        wide: Storage = "int4g32w" if coded.block[1] % LAYOUTS["int4g128w"].group else "int4g128w"
        storage = SYMMETRIC.get(scale, wide) if symmetric and bits == 4 else wide
    whole = storage is not None and coded.block[1] % (LAYOUTS[storage].group or 1) == 0
    return replace(coded, storage=storage if whole else None)


def _byte_storage(coded: Coded, scale: torch.dtype) -> Storage | None:
    if coded.scales.shape[1] == 1:
        return "int8"
    return "int8g32" if scale == torch.float16 and coded.block[1] % LAYOUTS["int8g32"].group == 0 else None


def _is_plain(order: Tensor, group: int, settings: Settings) -> bool:
    """Return whether each group's columns are adjacent; by the settings if only headers are known."""
    if order.is_meta:
        return not (settings.get("desc_act") or any(weights.get("actorder") for weights in weight_groups(settings)))
    return torch.equal(order.long(), torch.arange(len(order)) // group)


def _is_less_one(zeros: Tensor, bits: int, settings: Settings) -> bool:
    """Return whether zero points are stored minus one: by the settings, or unless all of them are the middle."""
    if zeros.is_meta or settings.get("checkpoint_format") == "gptq_v2":
        return False
    return not bool((unpacked(zeros, bits) == 1 << bits - 1).all())


def _ones(bits: int) -> int:
    """Return a word with a one in each field."""
    return sum(1 << shift for shift in range(0, WORD, bits))


def _awq_columns(packed: Tensor) -> Tensor:
    values = unpacked(packed, 4)
    runs = values.view(len(values), -1, len(AWQ_ORDER))
    return (runs if runs.is_meta else runs[:, :, AWQ_ORDER]).flatten(1)


def _word_bits(codes: Tensor, scales: Tensor, settings: Settings) -> int:
    """Return the bits per code: of the settings' first group of modules that matches the number of columns."""
    groups = [(number(weights, "num_bits"), number(weights, "group_size")) for weights in weight_groups(settings)]
    fitting = (
        bits
        for bits, size in groups
        if bits > 0 and (size <= 0 or codes.shape[1] * WORD // bits == scales.shape[-1] * size)
    )
    return next(fitting, groups[0][0] if groups else 4)


def _check_bits(bits: int) -> None:
    if bits not in READABLE_BITS:
        raise _unknown_bits(bits)


def _unknown_bits(bits: int) -> UnsupportedModel:
    return UnsupportedModel(
        sentence("The weights are quantised with {} bits.", bits),
        "Weights of 4 and 8 bits are read here.",
        "Choose another version of the model.",
    )
