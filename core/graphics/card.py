"""The record of a detected graphics card, whether or not the installed torch can compute on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Maker = Literal["NVIDIA", "AMD", "Intel"]
VENDORS: dict[int, Maker] = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel"}
"""Makers by PCI vendor ID."""


@dataclass(frozen=True)
class GraphicsCard:
    """A detected card.

    `architecture` is the compute capability for NVIDIA ("8.9"), the compiler target for AMD ("gfx1100"), the family for
    Intel ("Battlemage"), and "" if unknown. `driver` is its version, or "" without a driver for computing. `allowed`
    says whether the current user may open the card's device files.
    """

    maker: Maker
    name: str
    architecture: str = ""
    driver: str = ""
    allowed: bool = True
