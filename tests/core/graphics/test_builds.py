"""The build of torch for a card: the best that card, driver and system allow, or a reason with the next step."""

from __future__ import annotations

import pytest

from core.graphics.builds import BUILDS, NoRuntime, choose, driver_for, maker_of, numbers
from core.graphics.card import GraphicsCard

ARC = GraphicsCard("Intel", "Intel Arc B580", "Battlemage", "32.0.101.8860")
RADEON = GraphicsCard("AMD", "AMD Radeon RX 7900 XTX", "gfx1100", "6.14.0")
OLD_IRIS = GraphicsCard("Intel", "Intel Iris Xe", "", "32.0.101.8860")


def nvidia(driver: str, capability: str) -> GraphicsCard:
    return GraphicsCard("NVIDIA", "Card", capability, driver)


@pytest.mark.parametrize(
    ("card", "system", "tag"),
    [
        (nvidia("580.65.06", "8.9"), "linux", "cu130"),
        (nvidia("591.12", "12.0"), "win32", "cu130"),
        (nvidia("560.94", "8.6"), "win32", "cu126"),
        (nvidia("591.12", "6.1"), "linux", "cu126"),
        (nvidia("528.33", "9.0"), "linux", "cu126"),
        (RADEON, "linux", "rocm7.2"),
        (ARC, "linux", "xpu"),
        (ARC, "win32", "xpu"),
    ],
)
def test_the_newest_build_that_driver_and_card_allow(card: GraphicsCard, system: str, tag: str):
    build, chosen = choose([card], system)
    assert (build.tag, chosen) == (tag, card)


def test_a_card_that_no_build_suits_does_not_hide_another():
    build, card = choose([GraphicsCard("AMD", "Small", "gfx1036", "6.14"), OLD_IRIS, ARC], "linux")
    assert (build.tag, card) == ("xpu", ARC)


@pytest.mark.parametrize(
    ("cards", "system", "words"),
    [
        ([], "linux", "No graphics card answers"),
        ([nvidia("470.1", "3.5")], "linux", r"not supported by PyTorch. Its compute capability is 3\.5"),
        ([nvidia("560.94", "12.0")], "linux", "Version 580 or newer is needed. Install a newer driver from NVIDIA"),
        ([nvidia("470.1", "8.6")], "win32", "Version 528 or newer is needed"),
        ([nvidia("odd", "8.6")], "linux", "too old"),
        ([GraphicsCard("NVIDIA", "Card")], "win32", "no driver for computing. Install the driver from NVIDIA"),
        ([RADEON], "win32", "cannot be used on this system. PyTorch publishes .* AMD .* Under Linux it can be used"),
        ([GraphicsCard("AMD", "Radeon")], "linux", "no driver for computing. Install a newer kernel or AMD's own"),
        ([GraphicsCard("AMD", "Vega", "gfx906", "6.14")], "linux", "by PyTorch. It is of the kind gfx906"),
        ([GraphicsCard("AMD", "Radeon", "gfx1100", "6.14", False)], "linux", "groups render and video, then log in"),
        ([OLD_IRIS], "win32", "not supported by PyTorch. It is of an older kind"),
        ([GraphicsCard("Intel", "Arc", "Alchemist")], "linux", "libze-intel-gpu1"),
        ([GraphicsCard("Intel", "Arc", "Alchemist", "31.0.101.4091")], "win32", r"Version 31\.0\.101\.5122 or newer"),
    ],
)
def test_a_reason_where_there_is_none(cards: list[GraphicsCard], system: str, words: str):
    with pytest.raises(NoRuntime, match=words):
        choose(cards, system)


def test_a_version_tells_whose_cards_it_is_for():
    assert [maker_of(f"2.13.0+{build.tag}") for build in BUILDS] == [build.maker for build in BUILDS]
    assert maker_of("2.13.0+cpu") is None
    assert maker_of("2.13.0") is None


def test_the_driver_that_a_build_of_torch_runs_on():
    cards = (GraphicsCard("NVIDIA", "No driver", "8.9"), nvidia("580.1", "8.9"), RADEON)
    assert driver_for("2.13.0+cu130", cards) == "580.1"
    assert driver_for("2.13.0+rocm7.2", cards) == "6.14.0"
    assert driver_for("2.13.0+xpu", cards) == driver_for("2.13.0+cpu", cards) == ""


def test_versions_are_compared_by_their_numbers():
    assert numbers("580.65.06") == (580, 65, 6)
    assert numbers("6.14.0-29-generic") == (6, 14, 0)
    assert numbers("none") == ()
    assert numbers("32.0.101.10000") > numbers("32.0.101.9999")
