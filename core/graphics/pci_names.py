"""Names of PCI devices from the pci.ids file that most systems have."""

from __future__ import annotations

from pathlib import Path

from core.graphics.card import VENDORS, Maker

LISTS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids")


def pci_name(root: Path, maker: Maker, device: int) -> str:
    """Return maker and product name ("AMD Radeon RX 7900 XT/7900 XTX"), or maker and device ID if it is not listed."""
    vendor = next(number for number, known in VENDORS.items() if known == maker)
    for path in LISTS:
        if name := _listed(root / path, vendor, device):
            return f"{maker} {name}"
    return f"{maker} graphics {device:04x}"


def _listed(path: Path, vendor: int, device: int) -> str:
    """Return the product name, which the file puts in brackets after the name of the chip."""
    inside = False
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if inside and line.startswith(f"\t{device:04x}  "):
                    name = line.strip().partition("  ")[2]
                    return name.partition("[")[2].rstrip("]") or name
                if line[:1].strip() and not line.startswith("#"):
                    inside = line.startswith(f"{vendor:04x}  ")
    except OSError:
        return ""
    return ""
