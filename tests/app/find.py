"""Finds widgets like users and their tools: by accessible name or button text, and labels by object name."""

from __future__ import annotations

from typing import TypeVar

from PySide6.QtWidgets import QAbstractButton, QWidget

Kind = TypeVar("Kind", bound=QWidget)


def find(parent: QWidget, kind: type[Kind], name: str) -> Kind:
    """Return the only widget of this kind in `parent` with this name. Raises AssertionError for none or several."""
    found = [widget for widget in parent.findChildren(kind) if name in _names(widget)]
    assert len(found) == 1, f"{len(found)} widgets are called {name!r}"
    return found[0]


def _names(widget: QWidget) -> tuple[str, ...]:
    words = widget.text().replace("&", "") if isinstance(widget, QAbstractButton) else ""
    return widget.accessibleName(), widget.objectName(), words
