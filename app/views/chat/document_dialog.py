"""The text of an attached file, exactly as the model reads it."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QDialogButtonBox,
    QInputDialog,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app.i18n.translator import tr
from app.settings.theme import EDGE, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import TextBox

SIZE = (720, 560)
FIELD_WIDTH = 320


class PasswordDialog(QInputDialog):
    """Asks for the password of a file.

    Signals: `textValueSelected(password)`; `rejected`.
    """

    def __init__(self, name: str, why: str, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(tr("Password"))
        self.setLabelText(f"{name}\n{why}")
        self.setTextEchoMode(QLineEdit.EchoMode.Password)
        self.setOkButtonText(tr("Unlock"))
        self.setCancelButtonText(tr("Cancel"))
        self._lay_out()

    def _lay_out(self) -> None:
        layout = self.layout()
        assert layout is not None
        layout.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        layout.setSpacing(RELATED)
        for line in self.findChildren(QLineEdit):
            line.setMinimumWidth(FIELD_WIDTH)
        for button in self.findChildren(QPushButton):
            button.setProperty("primary", "true" if button.text() == self.okButtonText() else "false")
            button.style().polish(button)


class DocumentDialog(Dialog):
    """Shows a text below a note about it."""

    def __init__(self, theme: Theme, name: str, text: str, note: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWindowTitle(name)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(*SIZE)
        says = QLabel(" ".join(part for part in (tr("This is the text as the model reads it."), note) if part), self)
        says.setWordWrap(True)
        says.setTextFormat(Qt.TextFormat.PlainText)
        self.text = view = TextBox(theme, self)
        view.setReadOnly(True)
        view.setPlainText(text)
        view.setAccessibleName(name)
        close = QDialogButtonBox(self)
        close.addButton(tr("Close"), QDialogButtonBox.ButtonRole.RejectRole)
        close.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(RELATED)
        column.addWidget(says)
        column.addWidget(view, 1)
        column.addWidget(close)

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))
