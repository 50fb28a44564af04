"""The page of remote models: an address, a key, a test that says which step fails, and a model to answer from there."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app.engine.remote_state import RemoteState
from app.i18n.translator import said_error, tr
from app.settings.theme import EDGE, GROUP, RELATED, Theme
from app.views.controls.inputs import ChoiceBox
from app.views.settings.settings_pages import paragraph
from core.remote.check import Outcome
from core.remote.endpoint import PRESETS

SIZE = (560, 540)
DONE, FAILED = "✓", "✕"


class RemoteDialog(QDialog):
    """Signals: `test_wished(address, key)`, `connect_wished(address, key, model)`."""

    test_wished = Signal(str, str)
    connect_wished = Signal(str, str, str)

    def __init__(self, theme: Theme, state: RemoteState, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWindowTitle(tr("Remote model"))
        self.setObjectName("remote")
        self.resize(*SIZE)
        self.address = self._line(tr("Address"), "http://192.168.1.20:8000/v1")
        self.presets = ChoiceBox(theme, self)
        self.presets.setAccessibleName(tr("Program"))
        self.presets.addItems([tr("Programs on this computer"), *PRESETS])
        self.presets.activated.connect(self._on_preset)
        self.key = self._line(tr("API key"), tr("only if the server asks for one"))
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.model: QComboBox = ChoiceBox(theme, self)
        self.model.setEditable(True)
        self.model.setAccessibleName(tr("Model"))
        self.steps = paragraph(theme, "", "muted")
        self.steps.setAccessibleName(tr("Test"))
        self.error = paragraph(theme, "", "danger")
        self.test = QPushButton(tr("Test"), self)
        self.test.clicked.connect(lambda: self.test_wished.emit(self.address.text(), self.key.text()))
        self.connect_button = QPushButton(tr("Connect"), self)
        self.connect_button.setObjectName("connect")
        self.connect_button.setProperty("primary", "true")
        self.connect_button.setDefault(True)
        self.connect_button.clicked.connect(self._on_connect)
        self.address.textChanged.connect(self._on_typed)
        self._lay_out()
        self.address.setText(state.address)
        self._on_typed(state.address)
        self.show_state(state)
        self.address.setFocus()

    @Slot(object)
    def show_state(self, state: RemoteState) -> None:
        """Show how far a test is."""
        self.test.setText(tr("Testing…") if state.busy else tr("Test"))
        self.test.setEnabled(not state.busy and bool(self.address.text().strip()))
        self.steps.setText("\n".join(map(step_line, state.outcomes)))
        failed = next((one.error for one in state.outcomes if one.error is not None), None)
        self.error.setText("" if failed is None else said_error(failed))
        self.error.setVisible(failed is not None)
        if state.models and state.models != self._listed():
            typed = self.model.currentText()
            self.model.clear()
            self.model.addItems(list(state.models))
            self.model.setCurrentText(typed or state.models[0])

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    def _listed(self) -> tuple[str, ...]:
        return tuple(self.model.itemText(row) for row in range(self.model.count()))

    def _line(self, name: str, hint: str) -> QLineEdit:
        line = QLineEdit(self)
        line.setAccessibleName(name)
        line.setPlaceholderText(hint)
        return line

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(RELATED)
        headline = QLabel(tr("Use a model on another computer"), self)
        headline.setFont(self._theme.font("heading2"))
        column.addWidget(headline)
        words = tr("Any server with OpenAI's interface: vLLM, SGLang, llama-server, Ollama, LM Studio, HeteGen.")
        warning = tr("What you write in such a chat, and all of the conversation, is sent there.")
        column.addWidget(paragraph(self._theme, words))
        column.addWidget(paragraph(self._theme, warning, "muted"))
        column.addSpacing(GROUP - RELATED)
        column.addLayout(self._form())
        column.addSpacing(GROUP - RELATED)
        column.addWidget(self.steps)
        column.addWidget(self.error)
        column.addStretch(1)
        column.addLayout(self._buttons())

    def _form(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(RELATED)
        grid.setVerticalSpacing(RELATED)
        rows = (tr("Address"), self.address), ("", self.presets), (tr("API key"), self.key), (tr("Model"), self.model)
        for row, (name, field) in enumerate(rows):
            label = QLabel(name, self)
            label.setBuddy(field)
            grid.addWidget(label, row, 0, Qt.AlignmentFlag.AlignVCenter)
            grid.addWidget(field, row, 1)
        grid.setColumnStretch(1, 1)
        return grid

    def _buttons(self) -> QHBoxLayout:
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        close = QPushButton(tr("Close"), self)
        close.clicked.connect(self.reject)
        row.addWidget(self.test)
        row.addStretch(1)
        row.addWidget(close)
        row.addWidget(self.connect_button)
        return row

    @Slot(int)
    def _on_preset(self, row: int) -> None:
        if row:
            self.address.setText(list(PRESETS.values())[row - 1])

    @Slot(str)
    def _on_typed(self, text: str) -> None:
        self.test.setEnabled(bool(text.strip()))
        self.connect_button.setEnabled(bool(text.strip()))

    @Slot()
    def _on_connect(self) -> None:
        self.connect_wished.emit(self.address.text(), self.key.text(), self.model.currentText().strip())
        self.accept()


def step_line(outcome: Outcome) -> str:
    """One step of a test in words."""
    words = {
        "address": tr("The address can be read"),
        "name": tr("The computer is found by its name"),
        "connection": tr("Something answers there"),
        "certificate": tr("The connection can be trusted"),
        "key": tr("The key is accepted"),
        "path": tr("It is a model server"),
        "models": tr("It names its models"),
    }
    return f"{DONE if outcome.error is None else FAILED}  {words[outcome.step]}"
