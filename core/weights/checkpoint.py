"""The safetensors files of a model folder as one read-only mapping from tensor names to memory-mapped tensors.

This module knows files and bytes; `core.model` maps names to the module tree. Pickled weights are refused.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from core.weights.mapped_file import map_file, read_once
from core.weights.safetensors_header import TensorInfo, read_header
from core.weights.stored_formats import FLOATING
from core.weights.weight_files import weight_files

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class Checkpoint(Mapping[str, Tensor]):
    """All tensors of a folder by their names in the files; `checkpoint[name]` is a view of the mapped file.

    The views are read-only: writing to one crashes the process. They stay valid for as long as they exist.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers of all shards. Raises ModelNotFound, ModelUnreadable, UnsupportedModel."""
        self.folder = folder
        self.files = weight_files(folder)
        self._where: dict[str, tuple[Path, TensorInfo]] = {}
        for file in self.files:
            self._where.update({name: (file, info) for name, info in read_header(file).items()})

    def __getitem__(self, name: str) -> Tensor:
        file, info = self._where[name]
        if info.elements == 0:
            return torch.empty(info.shape, dtype=DTYPES[info.dtype])
        with warnings.catch_warnings():
            # torch warns that the buffer is read-only, which is intended.
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(self._maps[file], dtype=DTYPES[info.dtype], count=info.elements, offset=info.start)
        return flat.view(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Type, shape and byte range of each tensor."""
        return {name: info for name, (_, info) in self._where.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for _, info in self._where.values())

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type with the most bytes."""
        return main_dtype(self.infos)

    def warm(self) -> Iterator[float]:
        """Read the files once, so that they are in the page cache; yield the fraction read."""
        return read_once(self.files)

    def let_go(self) -> None:
        """Drop the pages read so far from this process's resident set, where the system supports it (madvise)."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _maps(self) -> dict[Path, mmap.mmap]:
        return {file: map_file(file) for file in self.files}


def main_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """Return the floating-point type with the most bytes; fp64 counts as fp32, which is used to compute."""
    sizes: dict[str, int] = {}
    for info in tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    plain = {name: size for name, size in sizes.items() if name in FLOATING}
    found = DTYPES[max(plain, key=plain.__getitem__)] if plain else torch.float32
    return torch.float32 if found is torch.float64 else found
