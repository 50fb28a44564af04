"""Settings of one conversation: system prompt and sampling preset."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.settings import declared
from app.settings.theme import EDGE, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import ChoiceBox, TextBox

SIZE = (480, 360)
AS_SETTINGS = "As in the settings"


class ConversationDialog(Dialog):
    """Edits the settings of the open conversation.

    Signal: `applied(system prompt, preset)`; the preset "" means as in the settings.
    """

    applied = Signal(str, str)

    def __init__(self, theme: Theme, system: str, preset: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWindowTitle(tr("This conversation"))
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(*SIZE)
        self.system = TextBox(theme, self)
        self.system.setPlainText(system)
        self.system.setAccessibleName(tr("System prompt"))
        self.system.setTabChangesFocus(True)
        self.system.setPlaceholderText(tr("What the model is told before the first message."))
        self.preset = ChoiceBox(theme, self)
        self.preset.addItem(tr(AS_SETTINGS), "")
        for value, words in declared()["sampling_preset"].choices:
            if value != "custom":
                self.preset.addItem(tr(words), value)
        self.preset.setCurrentIndex(max(0, self.preset.findData(preset)))
        self.preset.setAccessibleName(tr("Sampling"))
        self._lay_out()

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    def _lay_out(self) -> None:
        apply, cancel = QPushButton(tr("Apply"), self), QPushButton(tr("Cancel"), self)
        apply.setProperty("primary", "true")
        apply.setDefault(True)
        apply.clicked.connect(self._on_apply)
        cancel.clicked.connect(self.reject)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(cancel)
        row.addWidget(apply)
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(RELATED)
        for words, widget in (("System prompt", self.system), ("Sampling", self.preset)):
            label = QLabel(tr(words), self)
            label.setBuddy(widget)
            column.addWidget(label)
            column.addWidget(widget, 1 if widget is self.system else 0)
        column.addSpacing(RELATED)
        column.addLayout(row)

    def _on_apply(self) -> None:
        self.applied.emit(self.system.toPlainText().strip(), str(self.preset.currentData()))
        self.accept()
