"""Detection of cards: what a driver reports takes precedence over what the system lists."""

from __future__ import annotations

from core.graphics.card import GraphicsCard
from core.graphics.find import find_cards, merged

LISTED = [GraphicsCard("Intel", "UHD", "", "1.6"), GraphicsCard("NVIDIA", "NVIDIA graphics 2684")]
ANSWERING = [GraphicsCard("NVIDIA", "RTX 4090", "8.9", "580.65.06")]


def test_the_driver_knows_more_than_the_system() -> None:
    assert merged(ANSWERING, LISTED) == (ANSWERING[0], LISTED[0])


def test_without_an_answer_the_system_still_names_the_card() -> None:
    assert merged([], LISTED) == (LISTED[1], LISTED[0])


def test_this_computer_can_be_asked() -> None:
    assert all(card.name for card in find_cards())
