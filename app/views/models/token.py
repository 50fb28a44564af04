"""The token for the Hub, at the foot of the model dialog: where it comes from, another one, and forgetting it."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtWidgets import QInputDialog, QLineEdit, QMenu, QPushButton, QWidget

from app.i18n.translator import tr
from core.hub.token import Source

SOURCES: dict[Source, str] = {
    "environment": "The token of HF_TOKEN is used",
    "keyring": "A token is kept in the keyring",
    "file": "The token of Hugging Face's own file is used",
    "none": "No token is used",
}


class TokenButton(QPushButton):
    """Signals: `asked`, to be answered by `show_source`; `token_given(text)`; `forgotten`."""

    asked = Signal()
    token_given = Signal(str)
    forgotten = Signal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(tr("Token…"), parent)
        self.setAutoDefault(False)
        self.setToolTip(tr("For models whose owner asks for it"))
        self.clicked.connect(self.asked)

    @Slot(str)
    def show_source(self, source: Source) -> None:
        """What there is, and what can be done with it."""
        self.menu_for(source).popup(self.mapToGlobal(self.rect().topLeft()))

    def menu_for(self, source: Source) -> QMenu:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction(tr(SOURCES[source])).setEnabled(False)
        menu.addSeparator()
        menu.addAction(tr("Enter another…") if source != "none" else tr("Enter one…"), self._enter)
        # Only what was kept here is ours to forget.
        if source == "keyring":
            menu.addAction(tr("Forget it"), self.forgotten.emit)
        return menu

    def _enter(self) -> None:
        hidden = QLineEdit.EchoMode.Password
        text, given = QInputDialog.getText(self, tr("Token"), tr("Hugging Face token (hf_…)"), hidden)
        if given and text.strip():
            self.token_given.emit(text.strip())
