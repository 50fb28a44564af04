"""Finds what lies in `assets/`, the same way from source and from a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

ICONS = (
    "arrow-down", "card", "check", "chevron-down", "chevron-left", "chevron-right", "chip", "close", "continue", "copy",
    "download", "edit", "external", "folder", "info", "keyboard", "live", "log", "mark", "more", "pin", "plus",
    "regenerate", "save", "search", "send", "settings", "sidebar", "stop", "thought", "trash", "warning",
)  # fmt: skip


def assets() -> Path:
    """The folder of icons, licences and the built-in model."""
    # A PyInstaller bundle unpacks its data beside the program and names that folder here.
    bundle = getattr(sys, "_MEIPASS", None)
    return Path(bundle) / "assets" if bundle else Path(__file__).resolve().parent.parent / "assets"


def icon_source(name: str) -> str:
    """The SVG text of one of our icons; its strokes are `currentColor`."""
    if name not in ICONS:
        raise KeyError(name)
    return (assets() / "icons" / f"{name}.svg").read_text(encoding="utf-8")
