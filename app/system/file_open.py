"""Files that the system asks the program to open: on macOS a double click sends an event instead of an argument."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, Signal
from PySide6.QtGui import QFileOpenEvent


class FileOpen(QObject):
    """Event filter for the application.

    Signal: `asked(path)` when the system asks to open a file.
    """

    asked = Signal(str)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.FileOpen and isinstance(event, QFileOpenEvent) and event.file():
            self.asked.emit(event.file())
            return True
        return False
