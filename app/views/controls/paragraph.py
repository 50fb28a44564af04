"""Text of dialogs in lines of their width."""

from __future__ import annotations

from PySide6.QtCore import Qt, Slot
from PySide6.QtWidgets import QLabel

from app.settings.theme import Theme


class Paragraph(QLabel):
    """Wrapped, selectable text in a colour of the theme, which it follows."""

    def __init__(self, theme: Theme, text: str, token: str = "text") -> None:
        """`token`: the name of the colour."""
        super().__init__(text)
        self._theme, self._token = theme, token
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        # Connected to a method: a closure would outlive the label, and fail with the next change.
        theme.changed.connect(self._on_theme)
        self._on_theme()

    @Slot()
    def _on_theme(self) -> None:
        self.setStyleSheet(f"color: {getattr(self._theme.colours, self._token)};")
