"""The base of all dialogs."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QDialog, QPushButton

from app.views.controls.controls import IconButton


class Dialog(QDialog):
    """A dialog in which Enter presses the button with the keyboard focus. Qt's own would press the default button, e.g.
    save when Cancel has the focus."""

    def keyPressEvent(self, event: QKeyEvent) -> None:
        focus = self.focusWidget()
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and isinstance(focus, QPushButton | IconButton):
            focus.click()
        else:
            super().keyPressEvent(event)
