"""The keys, on one page (F1)."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QDialog, QGridLayout, QLabel, QVBoxLayout, QWidget

from app.language import tr
from app.theme import EDGE, GROUP, RELATED, Theme

ALWAYS = (
    ("Send", "Return"),
    ("New line", "Shift+Return"),
    ("Stop", "Esc"),
    ("Edit the last question (in an empty field)", "Up"),
    ("Rename, delete, pin a conversation in the list", "F2, Del, Ctrl+P"),
    ("Scroll the conversation", "PgUp, PgDown, Home, End"),
)


class ShortcutsPage(QDialog):
    """(words, keys) pairs of the window's actions, and those that are always so."""

    def __init__(self, theme: Theme, actions: tuple[tuple[str, str], ...], parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle(tr("Keyboard shortcuts"))
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        grid = QGridLayout()
        grid.setHorizontalSpacing(GROUP * 3)
        grid.setVerticalSpacing(RELATED)
        grid.setColumnStretch(0, 1)
        for row, (words, keys) in enumerate((*actions, *ALWAYS)):
            shown = ", ".join(
                QKeySequence(key).toString(QKeySequence.SequenceFormat.NativeText) for key in keys.split(", ")
            )
            label = QLabel(shown, self)
            label.setStyleSheet(f"color: {theme.colours.muted};")
            grid.addWidget(QLabel(tr(words).rstrip("…"), self), row, 0)
            grid.addWidget(label, row, 1, Qt.AlignmentFlag.AlignRight)
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.addLayout(grid)
