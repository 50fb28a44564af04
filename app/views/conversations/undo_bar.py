"""A bar that shows a deletion for some seconds, with a button to undo it."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QPushButton, QVBoxLayout, QWidget

from app.settings.theme import INSIDE, RELATED, Theme
from app.views.controls.controls import ElidedLabel, Pane
from app.views.controls.tab_stops import holds_focus

UNDO_MS = 10_000


class UndoBar(Pane):
    """Offers to undo the last deletion; it stays while the keyboard focus is on it.

    Signals: `undone(id)`; `expired(id)` when the deletion is final.
    """

    undone = Signal(str)
    expired = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(theme, "raised", ("top",), parent)
        self._deleted = ""
        self._words = ElidedLabel(self)
        self._button = QPushButton(self.tr("Undo"), self)
        self._button.clicked.connect(self._on_undo)
        self._timer = QTimer(self, singleShot=True, interval=UNDO_MS)
        self._timer.timeout.connect(self._on_time)
        column = QVBoxLayout(self)
        column.setContentsMargins(RELATED * 2, RELATED, RELATED, RELATED)
        column.setSpacing(INSIDE)
        column.addWidget(self._words)
        column.addWidget(self._button, 0, Qt.AlignmentFlag.AlignRight)
        self.hide()

    def offer(self, conversation: str, title: str) -> None:
        """Offer to undo this deletion; an earlier one becomes final."""
        self.expire()
        self._deleted = conversation
        self._words.say(self.tr("Deleted “{}”"), title or self.tr("Untitled"))
        self._button.setAccessibleName(self.tr("Undo: {}").format(self._words.accessibleName()))
        self.show()
        self._timer.start()

    @Slot()
    def expire(self) -> None:
        """Make the deletion final."""
        self._timer.stop()
        self.hide()
        gone, self._deleted = self._deleted, ""
        if gone:
            self.expired.emit(gone)

    @Slot()
    def _on_time(self) -> None:
        if holds_focus(self):
            self._timer.start()
        else:
            self.expire()

    @Slot()
    def _on_undo(self) -> None:
        self._timer.stop()
        self.hide()
        wanted, self._deleted = self._deleted, ""
        self.undone.emit(wanted)
