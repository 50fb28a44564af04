"""The keyboard shortcuts, on one page (F1)."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence, QPainter, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import EDGE, GROUP, INSIDE, LINE, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.scroll_pane import ScrollPane

FRAME = 64
"""Height left for the window's frame on a low screen."""
ALWAYS = (
    ("Send", "Return"),
    ("New line", "Shift+Return"),
    ("Stop", "Esc"),
    ("Edit the last question (in an empty field)", "Up"),
    ("Rename, delete, pin a conversation in the list", "F2, Del, Ctrl+P"),
    ("Scroll the conversation", "PgUp, PgDown, Home, End"),
)


class ShortcutsPage(Dialog):
    """Lists (words, keys) pairs of the window's actions, and fixed keys."""

    def __init__(self, theme: Theme, actions: tuple[tuple[str, str], ...], parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle(tr("Keyboard shortcuts"))
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._theme = theme
        inside = QWidget()
        grid = QGridLayout(inside)
        grid.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        grid.setHorizontalSpacing(GROUP * 3)
        grid.setVerticalSpacing(INSIDE)
        grid.setColumnStretch(0, 1)
        for row, (words, keys) in enumerate((*actions, *ALWAYS)):
            grid.addWidget(QLabel(tr(words).rstrip("…"), self), row, 0)
            grid.addLayout(self._caps(keys), row, 1)
        area = ScrollPane(theme, self.windowTitle(), self)
        area.setWidget(inside)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(area)
        needed, room = inside.sizeHint(), self.screen().availableGeometry().height() - FRAME
        self.resize(needed.width() + area.verticalScrollBar().sizeHint().width(), min(needed.height(), room))

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    def _caps(self, keys: str) -> QHBoxLayout:
        """Lay out each key, or key combination, as a cap."""
        c = self._theme.colours
        row = QHBoxLayout()
        row.setSpacing(INSIDE)
        row.addStretch(1)
        for key in keys.split(", "):
            label = QLabel(QKeySequence(key).toString(QKeySequence.SequenceFormat.NativeText), self)
            label.setFont(self._theme.font("small"))
            label.setStyleSheet(
                f"color: {c.muted}; background: {c.side}; border: {LINE}px solid {c.border};"
                f" border-radius: {INSIDE}px; padding: 2px 6px;"
            )
            row.addWidget(label)
        return row
