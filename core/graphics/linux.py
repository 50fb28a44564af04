"""Graphics cards on Linux, from /sys, and whether the kernel and the user's rights allow computing on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.graphics.card import VENDORS, GraphicsCard, Maker
from core.graphics.intel import family, level_zero_version
from core.graphics.pci_names import pci_name

DISPLAY = 0x03
"""PCI base class of display controllers."""
NODES = "sys/class/kfd/kfd/topology/nodes"
"""The compute nodes of AMD's kernel driver (KFD): CPUs and GPUs, one folder each."""


@dataclass(frozen=True)
class _Slot:
    """A display controller: its PCI address ("0000:03:00.0"), its maker and its PCI device ID."""

    address: str
    maker: Maker
    device: int


def linux_cards(root: Path) -> list[GraphicsCard]:
    """Return the cards found under `root` (/ except in tests), ordered by PCI address."""
    return [_card(root, slot) for slot in _slots(root)]


def _slots(root: Path) -> Iterator[_Slot]:
    devices = root / "sys/bus/pci/devices"
    for folder in sorted(devices.iterdir()) if devices.is_dir() else ():
        kind, vendor, device = (_number(folder / name) for name in ("class", "vendor", "device"))
        if kind >> 16 == DISPLAY and vendor in VENDORS:
            yield _Slot(folder.name, VENDORS[vendor], device)


def _card(root: Path, slot: _Slot) -> GraphicsCard:
    name = pci_name(root, slot.maker, slot.device)
    if slot.maker == "AMD":
        target = amd_targets(root).get(slot.address, "")
        return GraphicsCard("AMD", name, target, _amd_driver(root) if target else "", _may_open(root / "dev/kfd"))
    if slot.maker == "Intel":
        return GraphicsCard("Intel", name, family(slot.device), level_zero_version(root), _may_render(root))
    return GraphicsCard("NVIDIA", name)


def amd_targets(root: Path) -> dict[str, str]:
    """Return the compiler targets ("gfx1100") of AMD cards by PCI address; only cards that KFD lists."""
    found = {}
    for node in sorted((root / NODES).glob("*/properties")):
        facts = _properties(node)
        if version := facts.get("gfx_target_version", 0):
            found[_address(facts)] = _target(version)
    return found


def _address(facts: dict[str, int]) -> str:
    place = facts.get("location_id", 0)
    return f"{facts.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"


def _target(version: int) -> str:
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _amd_driver(root: Path) -> str:
    """Return the version of AMD's own driver, or the kernel's version for the in-tree driver."""
    own = root / "sys/module/amdgpu/version"
    return _text(own) or _text(root / "proc/sys/kernel/osrelease")


def _may_render(root: Path) -> bool:
    nodes = list((root / "dev/dri").glob("renderD*"))
    return not nodes or any(map(_may_open, nodes))


def _may_open(device: Path) -> bool:
    return os.access(device, os.R_OK | os.W_OK)


def _properties(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int:
    try:
        return int(_text(path), 16)
    except ValueError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
