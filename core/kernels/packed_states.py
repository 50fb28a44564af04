"""The 8-bit KV cache: states are quantised when they are appended and dequantised for code that computes with floats.

A packed row (packed_width(D) bytes) has one signed byte per column, then a bf16 scale for each 32 columns. Keys go
through a Hadamard transform first (`mixed`): a few of their columns are far larger than the rest and would take all the
precision. Queries that are transformed alike give the same dot products.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.float_stand_in import FloatStandIn
from core.kernels.native_library import NativeLibrary, native
from core.kernels.packed_width import GROUP, MOST_COLUMNS, PACKED, unpacked

LARGEST = 127
TYPES = (torch.float32, torch.bfloat16)
"""Float types that the library packs."""


class Stored(NamedTuple):
    """Keys or values as stored: floats (B, H, T, D); or packed (1, H, T, packed_width(D)), with the last R of them
    unpacked in `recent` (1, H, R, D)."""

    rows: Tensor
    recent: Tensor | None = None

    def floats(self, dtype: torch.dtype, *, mixed: bool) -> Tensor:
        """Return the states as floats (B, H, T, D): packed ones dequantised to `dtype`, others unchanged."""
        if self.rows.dtype is not PACKED:
            return self.rows
        if self.recent is None:
            return widen(self.rows, dtype, mixed=mixed)
        older = self.rows.shape[2] - self.recent.shape[2]
        if older == 0:
            return self.recent.to(dtype)
        return torch.cat((widen(self.rows[:, :, :older], dtype, mixed=mixed), self.recent.to(dtype)), 2)


class PackedRows(FloatStandIn):
    """Packed keys or values as a cache returns them to a model; our attention reads `stored`."""

    stored: Stored
    mixed: bool

    @classmethod
    def of(cls, stored: Stored, *, mixed: bool) -> PackedRows:
        """Wrap packed rows; they behave as floats of the type of their recent states."""
        made: PackedRows = Tensor._make_subclass(cls, stored.rows)
        made.stored, made.mixed = stored, mixed
        return made

    def floats(self) -> Tensor:
        """Return the rows dequantised, (B, H, T, D)."""
        assert self.stored.recent is not None
        return self.stored.floats(self.stored.recent.dtype, mixed=self.mixed)


def as_stored(states: Tensor) -> Stored:
    """Return keys or values (B, H, T, D), as returned by a cache, in their stored form."""
    return states.stored if isinstance(states, PackedRows) else Stored(states)


def pack(states: Tensor, packed: Tensor, *, mixed: bool, transform: Tensor | None = None) -> None:
    """Quantise states (1, H, T, D) into `packed` (1, H, T, packed_width(D)), on whichever device that is.

    `transform`: `hadamard(D)` on that device, if it is there already.
    """
    states = states.to(packed.device)
    library = _library(states, states.shape[3], states.dtype)
    if library is not None and states.stride(3) == 1:
        library.pack(states, packed, mixed=mixed)
        return
    columns = states.shape[3]
    x = _mixed(states.float(), transform) if mixed else states.float()
    padded = torch.nn.functional.pad(x, (0, -columns % GROUP))
    groups = padded.view(*padded.shape[:3], -1, GROUP)
    scales = (groups.abs().amax(-1) / LARGEST).bfloat16()
    factors = scales.float().reciprocal().masked_fill(scales == 0, 0.0).unsqueeze(-1)
    values = (groups * factors).round().clamp(-LARGEST, LARGEST).nan_to_num().to(PACKED)
    packed[..., :columns] = values.flatten(3)[..., :columns]
    packed[..., columns:] = scales.view(PACKED)


def widen(packed: Tensor, dtype: torch.dtype, *, mixed: bool, transform: Tensor | None = None) -> Tensor:
    """Dequantise `packed` (1, H, T, packed_width(D)) to (1, H, T, D) of `dtype` on its own device.

    `transform`: `hadamard(D)` on that device, if it is there already.
    """
    columns = unpacked(packed.shape[3])
    library = _library(packed, columns, dtype)
    if library is not None and packed.stride(3) == 1:
        states = torch.empty((*packed.shape[:3], columns), dtype=dtype)
        library.widen(packed, states, mixed=mixed)
        return states
    scales = packed[..., columns:].contiguous().view(torch.bfloat16).float()
    x = packed[..., :columns].float() * scales.repeat_interleave(GROUP, 3)[..., :columns]
    return (_mixed(x, transform) if mixed else x).to(dtype)


def _library(tensor: Tensor, columns: int, dtype: torch.dtype) -> NativeLibrary | None:
    """Return the library if it can convert rows of `columns` columns from or to `dtype` on the tensor's device."""
    plain = tensor.device.type == "cpu" and type(tensor) is Tensor and tensor.shape[0] == 1
    return native() if plain and columns <= MOST_COLUMNS and dtype in TYPES else None


def hadamard(columns: int) -> Tensor:
    """Return the orthonormal Hadamard matrix (n, n) on the host: n, a power of two, divides `columns`."""
    return _hadamard(columns & -columns)


def _mixed(x: Tensor, transform: Tensor | None) -> Tensor:
    """Apply an orthonormal Hadamard transform to each run of 2^n columns, 2^n being the largest power that divides
    D."""
    matrix = hadamard(x.shape[-1]).to(x.device) if transform is None else transform
    return (x.reshape(*x.shape[:-1], -1, matrix.shape[0]) @ matrix).view(x.shape)


@cache
def _hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.div(size**0.5)
