"""Intel GPU families by PCI device ID, and the version of the Level Zero driver on Linux."""

from __future__ import annotations

import re
from pathlib import Path

FAMILIES = (
    ("Alchemist", ((0x4F80, 0x4F88), (0x5690, 0x5697), (0x56A0, 0x56C2))),
    ("Battlemage", ((0xE202, 0xE223),)),
    ("Ponte Vecchio", ((0x0B69, 0x0B6E), (0x0BD0, 0x0BDB))),
    ("Meteor Lake", ((0x7D40, 0x7D40), (0x7D45, 0x7D45), (0x7D55, 0x7D55), (0x7DD5, 0x7DD5))),
    ("Arrow Lake", ((0x7D41, 0x7D41), (0x7D51, 0x7D51), (0x7D67, 0x7D67), (0x7DD1, 0x7DD1))),
    ("Lunar Lake", ((0x6420, 0x6420), (0x64A0, 0x64B0))),
    ("Panther Lake", ((0xB080, 0xB0B0), (0xFD80, 0xFD81))),
)
"""Ranges of PCI device IDs (inclusive), from Intel's compute driver. PyTorch has no kernels for older families."""
LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib", "usr/lib/intel-gpu", "run/opengl-driver/lib",
)  # fmt: skip
LEVEL_ZERO = "libze_intel_gpu.so.1"
"""Intel's Level Zero driver, which the XPU build of torch computes through."""


def family(device: int) -> str:
    """Return the family of a PCI device ID; "" for those before Alchemist."""
    for name, spans in FAMILIES:
        if any(first <= device <= last for first, last in spans):
            return name
    return ""


def level_zero_version(root: Path) -> str:
    """Return the version of the Level Zero driver under `root`, taken from its file name; "" if it is missing."""
    for folder in LIBRARY_FOLDERS:
        library = root / folder / LEVEL_ZERO
        if library.exists():
            numbers = re.search(r"\.so\.([\d.]+)$", library.resolve().name)
            return numbers.group(1) if numbers else "1"
    return ""
