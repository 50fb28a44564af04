"""Detection of all graphics cards of this computer."""

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
    """Return the cards that NVIDIA's driver or the system reports; () on macOS, where nothing has to be fetched."""
    return merged(nvidia_cards(), listed_cards())


def merged(answering: Sequence[GraphicsCard], listed: Sequence[GraphicsCard]) -> tuple[GraphicsCard, ...]:
    """Merge the cards reported by a driver with those listed by the system, ordered by maker.

    A maker whose driver reports cards is not taken from the system's list, which knows less.
    """
    told = {card.maker for card in answering}
    found = [*answering, *(card for card in listed if card.maker not in told)]
    return tuple(sorted(found, key=lambda card: ORDER.index(card.maker)))


def listed_cards() -> list[GraphicsCard]:
    """Return the cards that the operating system lists."""
    if sys.platform == "win32":
        return windows_cards(LocalMachine())
    return linux_cards(Path("/")) if sys.platform == "linux" else []
