"""The order in which the Tab key visits widgets. Qt's own is the order in which they were made."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QWidget


def order_as_read(first: QWidget, groups: Iterable[QWidget]) -> None:
    """Let Tab go from `first` to each group and the widgets in it, from top to bottom and from left to right."""
    last = first
    for group in groups:
        own = [group] if _is_stop(group) else []
        for stop in own + sorted(_stops(group), key=lambda widget: _place(widget, group)):
            QWidget.setTabOrder(last, stop)
            last = stop


def holds_focus(widget: QWidget) -> bool:
    """Return whether a widget, or one in it, has the keyboard focus, or will have it once its window is active."""
    focus = widget.window().focusWidget()
    return focus is not None and (focus is widget or widget.isAncestorOf(focus))


def _stops(group: QWidget) -> list[QWidget]:
    # The open list of a choice box is a window of its own.
    return [one for one in group.findChildren(QWidget) if _is_stop(one) and one.window() is group.window()]


def _is_stop(widget: QWidget) -> bool:
    return bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus)


def _place(widget: QWidget, group: QWidget) -> tuple[int, int]:
    at = widget.mapTo(group, QPoint())
    return at.y(), at.x()
