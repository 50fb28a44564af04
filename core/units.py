"""Sizes and rates as text: '6GiB', '8G', '512MB', '12GB/s'."""

from __future__ import annotations

import re

from core.errors import BadRequest
from core.sentence import sentence

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# A bare letter means the binary unit, as is usual for memory; 'GB' is decimal, as for disks and links.
UNITS = {
    "": 1, "b": 1,
    "k": KIB, "kb": 10**3, "kib": KIB,
    "m": MIB, "mb": 10**6, "mib": MIB,
    "g": GIB, "gb": 10**9, "gib": GIB,
    "t": 1 << 40, "tb": 10**12, "tib": 1 << 40,
}  # fmt: skip
WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Parse a size ('6GiB', '8G', '512MB', '1000000') to bytes. Raises BadRequest."""
    found = WRITTEN.fullmatch(text)
    if not found or found[2].lower() not in UNITS:
        raise BadRequest(
            sentence("{} is not a size.", f"{text!r}"), "", "Write a number and a unit, such as 6GiB or 512MB."
        )
    return int(float(found[1]) * UNITS[found[2].lower()])


def parse_rate(text: str) -> float:
    """Parse a rate ('12GB/s', '900MB/s') to bytes per second. Raises BadRequest."""
    size = parse_size(text.strip().removesuffix("/s"))
    if size <= 0:
        raise BadRequest(
            sentence("{} is not a rate.", f"{text!r}"), "It must be more than 0.", "Write for example 12GB/s."
        )
    return float(size)


def format_bytes(count: float) -> str:
    """Format a size in decimal units, as used for disks: '14.2 GB', '512 MB', '0 B'."""
    return _written(count, 1000)


def format_memory(count: float) -> str:
    """Format the memory of a computer or GPU in the units in which it is sold: 32 GiB as '32.0 GB'."""
    return _written(count, 1024)


def format_rate(bytes_per_second: float) -> str:
    """Format a rate: '31.5 GB/s'."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_share(share: float) -> str:
    """Format a fraction as a percentage: '64 %' for 0.64."""
    return f"{100 * share:.0f} %"


def _written(count: float, step: int) -> str:
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        value = count / step**power
        if abs(value) >= 0.9995:
            return f"{value:.0f} {unit}" if abs(value) >= 99.95 or power < 3 else f"{value:.1f} {unit}"
    return f"{count:.0f} B"
