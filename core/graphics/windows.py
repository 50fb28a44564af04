"""Graphics cards on Windows, with driver versions, from the registry."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import Protocol

from core.graphics.card import VENDORS, GraphicsCard
from core.graphics.intel import family

DISPLAY_CLASS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
"""The registry key of display adapters, each in a subkey of four digits. Removed adapters may remain in it."""
DEVICE = re.compile(r"PCI\\VEN_([0-9A-F]{4})&DEV_([0-9A-F]{4})", re.IGNORECASE)


class Registry(Protocol):
    """The part of the machine's registry that is read here."""

    def keys(self, path: str) -> list[str]:
        """Return the names of the subkeys of a key; none if it is missing."""

    def value(self, path: str, name: str) -> str:
        """Return a value as text; "" if it is missing."""


class LocalMachine:
    """The registry of this computer; empty on other systems than Windows."""

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
    """Return the display adapters that have a driver, without virtual ones and those of other makers."""
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
    # NVIDIA cards are reported by NVML; one that is found only here has no driver that answers.
    driver = "" if maker == "NVIDIA" else registry.value(key, "DriverVersion")
    return GraphicsCard(maker, name, family(number) if maker == "Intel" else "", driver)
