"""A read-only log in a monospaced font that follows its end unless the user scrolled up."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtWidgets import QPlainTextEdit, QWidget

from app.i18n.translator import tr
from app.settings.theme import Theme
from app.views.controls.inputs import TextBox


class LogBox(TextBox):
    """Shows lines of a log, newest last."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.setReadOnly(True)
        self.setAccessibleName(tr("Log"))
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setFont(theme.font("code"))

    def show_lines(self, lines: Iterable[str]) -> None:
        """Replace the lines."""
        text = "\n".join(lines)
        if text == self.toPlainText():
            return
        bar = self.verticalScrollBar()
        follows, at = bar.value() == bar.maximum(), bar.value()
        self.setPlainText(text)
        bar.setValue(bar.maximum() if follows else at)
