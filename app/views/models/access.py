"""Where a model's owner asks for a licence to be accepted: the way to it, and the field for the token."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtWidgets import QHBoxLayout, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import RELATED, Theme


class AccessForm(QWidget):
    """Signals: `token_given(text)`; `link(address)`."""

    token_given = Signal(str)
    link = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._licence = QLabel(self)
        self._licence.setTextFormat(Qt.TextFormat.RichText)
        self._licence.setTextInteractionFlags(
            Qt.TextInteractionFlag.LinksAccessibleByMouse | Qt.TextInteractionFlag.LinksAccessibleByKeyboard
        )
        self._licence.linkActivated.connect(self.link)
        self.field = QLineEdit(self)
        self.field.setPlaceholderText(tr("Hugging Face token (hf_…)"))
        self.field.setAccessibleName(tr("Hugging Face token"))
        self.field.setEchoMode(QLineEdit.EchoMode.Password)
        self.field.returnPressed.connect(self._on_token)
        self.use = QPushButton(tr("Use token"), self)
        self.use.setProperty("primary", "true")
        self.use.setAutoDefault(False)
        self.use.clicked.connect(self._on_token)
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addWidget(self.field, 1)
        row.addWidget(self.use)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, RELATED)
        column.setSpacing(RELATED)
        column.addWidget(self._licence)
        column.addLayout(row)

    def show_model(self, id: str) -> None:
        """Whose licence it is."""
        label = tr("Licence and access of {}").format(id)
        self._licence.setText(
            f'<a style="color: {self._theme.colours.accent}" href="https://huggingface.co/{id}">{label}</a>'
        )

    @Slot()
    def _on_token(self) -> None:
        if text := self.field.text().strip():
            self.field.clear()
            self.token_given.emit(text)
