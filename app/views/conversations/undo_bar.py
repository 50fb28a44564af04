"""A bar that shows a deletion for some seconds, with a button to undo it."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QWidget

from app.settings.theme import RELATED, SIDEBAR_WIDTH, Theme
from app.views.controls.controls import Pane

UNDO_MS = 10_000


class UndoBar(Pane):
    """Offers to undo the last deletion.

    Signals: `undone(id)`; `expired(id)` when the deletion is final.
    """

    undone = Signal(str)
    expired = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(theme, "raised", ("top",), parent)
        self._deleted = ""
        self._words = QLabel(self)
        self._words.setTextFormat(Qt.TextFormat.PlainText)
        self._button = QPushButton(self.tr("Undo"), self)
        self._button.clicked.connect(self._on_undo)
        self._timer = QTimer(self, singleShot=True, interval=UNDO_MS)
        self._timer.timeout.connect(self.expire)
        row = QHBoxLayout(self)
        row.setContentsMargins(RELATED * 2, RELATED, RELATED, RELATED)
        row.addWidget(self._words, 1)
        row.addWidget(self._button)
        self.hide()

    def offer(self, conversation: str, title: str) -> None:
        """Offer to undo this deletion; an earlier one becomes final."""
        self.expire()
        self._deleted = conversation
        words = self.tr("Deleted “{}”").format(title or self.tr("Untitled"))
        metrics = self.fontMetrics()
        self._words.setText(metrics.elidedText(words, Qt.TextElideMode.ElideRight, SIDEBAR_WIDTH - 110))
        self._button.setAccessibleName(self.tr("Undo: {}").format(words))
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
    def _on_undo(self) -> None:
        self._timer.stop()
        self.hide()
        wanted, self._deleted = self._deleted, ""
        self.undone.emit(wanted)
