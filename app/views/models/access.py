"""The Hub token: asked for beside a model that requires it, and managed at the foot of the dialog."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtWidgets import QHBoxLayout, QInputDialog, QLabel, QLineEdit, QMenu, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import RELATED, Theme
from core.hub.token import TokenSource

SOURCES: dict[TokenSource, str] = {
    "environment": "The token of HF_TOKEN is used",
    "keyring": "A token is kept in the keyring",
    "file": "The token of Hugging Face's own file is used",
    "none": "No token is used",
}


class AccessForm(QWidget):
    """A link to the licence that must be accepted, and a field for the token.

    Signals: `token_given(text)`; `link(address)`.
    """

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
        """Set the model whose licence is linked."""
        label = tr("Licence and access of {}").format(id)
        self._licence.setText(
            f'<a style="color: {self._theme.colours.accent}" href="https://huggingface.co/{id}">{label}</a>'
        )

    @Slot()
    def _on_token(self) -> None:
        if text := self.field.text().strip():
            self.field.clear()
            self.token_given.emit(text)


class TokenButton(QPushButton):
    """A button to see where the token comes from, to replace it, and to forget it.

    Signals: `asked`, to be answered by `show_source`; `token_given(text)`; `forgotten`.
    """

    asked = Signal()
    token_given = Signal(str)
    forgotten = Signal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(tr("Token…"), parent)
        self.setAutoDefault(False)
        self.setToolTip(tr("For models whose owner asks for it"))
        self.clicked.connect(self.asked)

    @Slot(str)
    def show_source(self, source: TokenSource) -> None:
        """Open the menu for a token from `source`."""
        self.menu_for(source).popup(self.mapToGlobal(self.rect().topLeft()))

    def menu_for(self, source: TokenSource) -> QMenu:
        """Build the menu for a token from `source`."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction(tr(SOURCES[source])).setEnabled(False)
        menu.addSeparator()
        menu.addAction(tr("Enter another…") if source != "none" else tr("Enter one…"), self._enter)
        # Only a token stored by this program can be forgotten.
        if source == "keyring":
            menu.addAction(tr("Forget it"), self.forgotten.emit)
        return menu

    def _enter(self) -> None:
        hidden = QLineEdit.EchoMode.Password
        text, given = QInputDialog.getText(self, tr("Token"), tr("Hugging Face token (hf_…)"), hidden)
        if given and text.strip():
            self.token_given.emit(text.strip())
