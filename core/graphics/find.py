"""All graphics cards of this computer, the makers whose cards are used longest first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from core.graphics.card import GraphicsCard
from core.graphics.linux import linux_cards
from core.graphics.nvidia import nvidia_cards
from core.graphics.windows import LocalMachine, windows_cards

ORDER = ("NVIDIA", "AMD", "Intel")


def find_cards() -> tuple[GraphicsCard, ...]:
    """What NVIDIA's driver, and for the others the system, knows; () where neither tells of cards, as on a Mac."""
    return merged(nvidia_cards(), listed_cards())


def merged(answering: Sequence[GraphicsCard], listed: Sequence[GraphicsCard]) -> tuple[GraphicsCard, ...]:
    """The cards that a driver answers for and those that the system lists, each once, in the order of their makers."""
    told = {card.maker for card in answering}
    found = [*answering, *(card for card in listed if card.maker not in told)]
    return tuple(sorted(found, key=lambda card: ORDER.index(card.maker)))


def listed_cards() -> list[GraphicsCard]:
    """The cards that this system lists."""
    if sys.platform == "win32":
        return windows_cards(LocalMachine())
    return linux_cards(Path("/")) if sys.platform == "linux" else []
