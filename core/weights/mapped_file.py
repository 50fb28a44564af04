"""Memory-maps weight files, and reads them once to fill the page cache."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import ModelUnreadable
from core.sentence import sentence

READ_BLOCK = 16 << 20
"""Bytes per read."""


def map_file(file: Path) -> mmap.mmap:
    """Map the whole file as read-only memory. Raises ModelUnreadable."""
    # ACCESS_READ, not a private mapping: for the latter, Windows would reserve page-file space for the whole file.
    try:
        with file.open("rb") as handle:
            if not handle.seek(0, os.SEEK_END):
                raise ModelUnreadable(
                    sentence("{} cannot be opened.", file.name), "There is nothing in it.", "Download the model again."
                )
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelUnreadable(
            sentence("{} cannot be opened.", file.name), f"{error}.", "Download the model again."
        ) from error


def read_once(files: Sequence[Path]) -> Iterator[float]:
    """Read files into the page cache; yield the fraction read."""
    done, total = 0, sum(file.stat().st_size for file in files)
    block = bytearray(READ_BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                done += count
                yield done / total
