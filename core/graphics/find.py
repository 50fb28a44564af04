"""All graphics cards of this computer, the makers whose cards are used longest first."""

from __future__ import annotations

import sys
from pathlib import Path

from core.graphics.card import GraphicsCard
from core.graphics.linux import linux_cards
from core.graphics.nvidia import nvidia_cards
from core.graphics.windows import LocalMachine, windows_cards

ORDER = ("NVIDIA", "AMD", "Intel")


def find_cards() -> tuple[GraphicsCard, ...]:
    """What NVIDIA's driver, and for the others the system, knows; () where neither tells of cards, as on a Mac."""
    found = _of_the_system()
    if answering := nvidia_cards():
        found = [*answering, *(card for card in found if card.maker != "NVIDIA")]
    return tuple(sorted(found, key=lambda card: ORDER.index(card.maker)))


def _of_the_system() -> list[GraphicsCard]:
    if sys.platform == "win32":
        return windows_cards(LocalMachine())
    return linux_cards(Path("/")) if sys.platform == "linux" else []
