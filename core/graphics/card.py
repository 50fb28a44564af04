"""A graphics card as the system describes it, whether or not anything here can compute on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Maker = Literal["NVIDIA", "AMD", "Intel"]
VENDORS: dict[int, Maker] = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel"}
"""Makers by the number that PCI gives to them."""


@dataclass(frozen=True)
class GraphicsCard:
    """A card by maker and name.

    `architecture`: the compute capability of NVIDIA's as "8.9", the target of AMD's as "gfx1100", the family of Intel's
    as "Battlemage", "" where unknown. `driver`: its version, "" without a driver that lets programs compute.
    `allowed`: whether this user may open the card.
    """

    maker: Maker
    name: str
    architecture: str = ""
    driver: str = ""
    allowed: bool = True
