"""Lines of a log: read only, in type of one width, following its end unless the reader has gone up."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtWidgets import QPlainTextEdit, QWidget

from app.i18n.translator import tr
from app.settings.theme import Theme
from app.views.controls.inputs import TextBox


class LogBox(TextBox):
    """Shows lines; the newest are at the end."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.setReadOnly(True)
        self.setAccessibleName(tr("Log"))
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setFont(theme.font("code"))

    def show_lines(self, lines: Iterable[str]) -> None:
        """Show these lines in place of those before."""
        text = "\n".join(lines)
        if text == self.toPlainText():
            return
        bar = self.verticalScrollBar()
        follows, at = bar.value() == bar.maximum(), bar.value()
        self.setPlainText(text)
        bar.setValue(bar.maximum() if follows else at)
