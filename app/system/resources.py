"""Finds files in `assets/`, from source and in a bundle."""

from __future__ import annotations

from core.paths import assets

ICONS = (
    "arrow-down", "card", "check", "chevron-down", "chevron-left", "chevron-right", "chip", "close", "continue", "copy",
    "download", "edit", "external", "folder", "info", "keyboard", "live", "log", "mark", "more", "paperclip", "pin",
    "plus", "regenerate", "save", "search", "send", "settings", "sidebar", "stop", "thought", "tool", "trash",
    "warning",
)  # fmt: skip


def icon_source(name: str) -> str:
    """Return the SVG text of an icon, whose strokes are `currentColor`. Raises KeyError for an unknown name."""
    if name not in ICONS:
        raise KeyError(name)
    return (assets() / "icons" / f"{name}.svg").read_text(encoding="utf-8")
