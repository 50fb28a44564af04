"""Measures the disk that holds a folder. No torch."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from core.units import MIB

DISK_BYTES = 64 * MIB


def measure_disk(folder: Path) -> float | None:
    """Return bytes per second of uncached reads; None if the system cannot bypass its cache."""
    if not hasattr(os, "posix_fadvise"):
        return None
    path = folder / "disk-rate.tmp"
    try:
        path.write_bytes(os.urandom(MIB) * (DISK_BYTES // MIB))
        return _read_uncached(path)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _read_uncached(path: Path) -> float:
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(4 * MIB)
        start = time.perf_counter()
        while file.readinto(buffer):
            pass
        return DISK_BYTES / (time.perf_counter() - start)
