"""Float weights of eight bits (block FP8, FBGEMM, compressed-tensors, MXFP8) or four bits (MXFP4, NVFP4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.spec import E2M1, LAYOUTS
from core.weights.stored.coded import Coded
from core.weights.stored.settings import Parts, Settings, weight_settings
from core.weights.stored.words import nibbles

USUAL_BLOCK = 128
HALF = 0.5
"""The engine's code book of 4-bit floats is doubled, so that its values are integers."""
EXPONENT_ONE = 127
"""The E8M0 exponent of 1."""


def float8(parts: Parts, settings: Settings) -> Coded:
    """Decode FP8 with one scale for the whole weight, per row, or per block of rows and columns."""
    codes = parts["codes"]
    scales = grid(parts["scales"]) if "scales" in parts else torch.ones((1, 1))
    block = block_of(codes.shape, scales.shape, block_settings(settings))
    keeps = codes.dtype is torch.float8_e4m3fn and (block[1] % LAYOUTS["fp8"].group == 0 or scales.shape[1] == 1)
    return Coded(codes, scales, block, storage="fp8" if keeps else None)


def mxfp4(parts: Parts, _: Settings) -> Coded:
    """Decode 4-bit floats with a power-of-two scale per 32 columns; bytes (N, K / 2), or by block (N, K / 32, 16)."""
    scales = powers(parts["scales"])
    codes = nibbles(parts["codes"].flatten(1))
    return Coded(codes, scales, (1, codes.shape[1] // scales.shape[1]), book=_book(), unit=HALF, storage="mxfp4")


def nvfp4(parts: Parts, _: Settings) -> Coded:
    """Decode 4-bit floats with an FP8 scale per 16 columns and a global one, which some files store inverted."""
    whole = parts["whole"].float() if "whole" in parts else parts["inverse"].float()
    fine = parts["scales"].float()
    scales = fine if fine.is_meta else fine * whole if "whole" in parts else fine / whole
    codes = nibbles(parts["codes"])
    return Coded(codes, scales, (1, codes.shape[1] // scales.shape[1]), book=_book(), unit=HALF, storage="nvfp4w")


def grid(scales: Tensor) -> Tensor:
    """Return scales in fp32 as (1, 1), (N, 1) or (n, k): a scalar applies to all, a vector to rows."""
    wide = powers(scales) if scales.dtype in (torch.uint8, torch.float8_e8m0fnu) else scales.float()
    return wide.reshape(1, 1) if wide.dim() == 0 else wide[:, None] if wide.dim() == 1 else wide


def powers(exponents: Tensor) -> Tensor:
    """Convert E8M0 exponents (...), one byte each, to powers of two (...)."""
    return exponents if exponents.is_meta else torch.exp2(exponents.view(torch.uint8).float() - EXPONENT_ONE)


def block_settings(settings: Settings) -> Sequence[int]:
    """Return rows and columns of a block from the settings, else the usual ones."""
    said = settings.get("weight_block_size") or weight_settings(settings).get("block_structure")
    if isinstance(said, list) and len(said) == 2 and all(isinstance(one, int) and one > 0 for one in said):
        return said
    return USUAL_BLOCK, USUAL_BLOCK


def block_of(shape: Sequence[int], scales: Sequence[int], usual: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns that share a scale. Raises ValueError if the number of scales does not match."""
    rows, columns = (_run(*three) for three in zip(shape, scales, usual, strict=True))
    return rows, columns


def _run(size: int, count: int, usual: int) -> int:
    # The last block may be incomplete: DeepSeek's kv_a projection has 576 rows.
    is_usual = usual > 0 and -(-size // usual) == count
    found = size if count == 1 else usual if is_usual else size // max(1, count)
    if not found or -(-size // found) != count or (usual == 1 < found < size):
        raise ValueError(size, count)
    return found


def _book() -> Tensor:
    return torch.tensor(E2M1, dtype=torch.float32) * HALF
