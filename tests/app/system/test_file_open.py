"""A double click on macOS: an event with the file's path arrives at the application."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QUrl
from PySide6.QtGui import QFileOpenEvent
from PySide6.QtWidgets import QApplication

from app.system.file_open import FileOpen


def test_a_file_that_the_system_hands_over_is_asked_for(qapp: QApplication) -> None:
    opened, asked = FileOpen(), list[str]()
    opened.asked.connect(asked.append)
    qapp.installEventFilter(opened)
    qapp.sendEvent(qapp, QFileOpenEvent("/models/m.gguf"))
    qapp.sendEvent(qapp, QFileOpenEvent(QUrl("https://example.org/no-file")))
    qapp.sendEvent(qapp, QEvent(QEvent.Type.LanguageChange))
    qapp.removeEventFilter(opened)
    assert asked == ["/models/m.gguf"]
