"""Graphics cards as Windows keeps them in its registry, with the versions of their drivers."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import Protocol

from core.graphics.card import VENDORS, GraphicsCard
from core.graphics.intel import family

DISPLAY_CLASS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
"""Where Windows keeps display adapters, each in a key of four digits; also those that were taken out."""
DEVICE = re.compile(r"PCI\\VEN_([0-9A-F]{4})&DEV_([0-9A-F]{4})", re.IGNORECASE)


class Registry(Protocol):
    """The registry of the machine, as far as it is read here."""

    def keys(self, path: str) -> list[str]:
        """The names of the keys in a key; none where it is missing."""

    def value(self, path: str, name: str) -> str:
        """A value as text; "" where it is missing."""


class LocalMachine:
    """The registry of this computer; empty on other systems."""

    def keys(self, path: str) -> list[str]:
        found: list[str] = []
        if sys.platform == "win32":
            import winreg

            with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                found += [winreg.EnumKey(key, index) for index in range(winreg.QueryInfoKey(key)[0])]
        return found

    def value(self, path: str, name: str) -> str:
        found = ""
        if sys.platform == "win32":
            import winreg

            with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                found = str(winreg.QueryValueEx(key, name)[0])
        return found


def windows_cards(registry: Registry) -> list[GraphicsCard]:
    """The display adapters of the registry that have a driver; those of other makers and virtual ones are left out."""
    adapters = [name for name in registry.keys(DISPLAY_CLASS) if name.isdigit()]
    found = (_card(registry, rf"{DISPLAY_CLASS}\{name}") for name in sorted(adapters))
    return [card for card in found if card]


def _card(registry: Registry, key: str) -> GraphicsCard | None:
    device = DEVICE.match(registry.value(key, "MatchingDeviceId"))
    maker = VENDORS.get(int(device.group(1), 16)) if device else None
    if not device or not maker:
        return None
    number = int(device.group(2), 16)
    name = registry.value(key, "DriverDesc") or f"{maker} graphics {number:04x}"
    # NVIDIA's own driver says more where it answers; a version alone means that it does not.
    driver = "" if maker == "NVIDIA" else registry.value(key, "DriverVersion")
    return GraphicsCard(maker, name, family(number) if maker == "Intel" else "", driver)
