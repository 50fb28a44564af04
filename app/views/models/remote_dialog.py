"""The page of remote models: address, key, a test that tells which step fails, and the model to use."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt, Signal, SignalInstance, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app.engine.remote_state import RemoteState
from app.i18n.translator import said_error, tr
from app.settings.theme import EDGE, GROUP, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import ChoiceBox, list_style
from app.views.controls.paragraph import Paragraph
from app.views.controls.tab_stops import holds_focus
from core.remote.check import Outcome
from core.remote.endpoint import PRESETS
from core.remote.saved import SavedEndpoint

SIZE = (780, 600)
LIST_WIDTH = 200
DONE, FAILED = "✓", "✕"


class RemoteDialog(Dialog):
    """Edits, tests and connects remote servers. `former`: the name that a server had before.

    Signals: `test_wished(address, key)`; `save_wished(SavedEndpoint, key, former)`; `connect_wished(SavedEndpoint, key,
    former)`; `remove_wished(name)`.
    """

    test_wished = Signal(str, str)
    save_wished = Signal(object, str, str)
    connect_wished = Signal(object, str, str)
    remove_wished = Signal(str)

    def __init__(self, theme: Theme, state: RemoteState, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._state = theme, RemoteState()
        self.setWindowTitle(tr("Remote model"))
        self.setObjectName("remote")
        self.resize(theme.grown(SIZE[0]), SIZE[1])
        self.list = QListWidget(self)
        self.list.setAccessibleName(tr("Servers"))
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setFixedWidth(theme.grown(LIST_WIDTH))
        self.list.setStyleSheet(list_style(theme.colours))
        self.list.currentRowChanged.connect(self._on_chosen)
        self.name = self._line(tr("Name"), tr("as you like"))
        self.address = self._line(tr("Address"), "http://192.168.1.20:8000/v1")
        self.presets = ChoiceBox(theme, self)
        self.presets.setAccessibleName(tr("Program"))
        self.presets.addItems([tr("Programs on this computer"), *PRESETS])
        self.presets.activated.connect(self._on_preset)
        self.key = self._line(tr("API key"), tr("only if the server asks for one"))
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.model: QComboBox = ChoiceBox(theme, self)
        self.model.setEditable(True)
        for line in self.model.findChildren(QLineEdit):
            line.setTextMargins(-2, 0, 0, 0)  # begins where the text of the other fields does
        self.model.setAccessibleName(tr("Model"))
        self.steps = Paragraph(theme, "", "muted")
        self.steps.setAccessibleName(tr("Test"))
        self.error = Paragraph(theme, "", "danger")
        self.test = self._button(tr("Test"), lambda: self.test_wished.emit(self.address.text(), self.key.text()))
        self.save = self._button(tr("Save"), lambda: self._tell(self.save_wished))
        self.remove = self._button(tr("Remove"), lambda: self.remove_wished.emit(self.former))
        self.add = self._button(tr("New server"), lambda: self.list.setCurrentRow(-1))
        self.connect_button = self._button(tr("Connect"), self._on_connect)
        self.connect_button.setObjectName("connect")
        self.connect_button.setProperty("primary", "true")
        self.connect_button.setDefault(True)
        self.address.textChanged.connect(self._on_typed)
        self._lay_out()
        self.remove.setEnabled(False)
        self.show_state(state)
        self.address.setText(state.address)
        self._on_typed(state.address)
        self.address.setFocus()

    @property
    def former(self) -> str:
        """The name of the selected server, "" for a new one."""
        row = self.list.currentRow()
        return self._state.saved[row].name if 0 <= row < len(self._state.saved) else ""

    @Slot(object)
    def show_state(self, state: RemoteState) -> None:
        """Show the progress of a test and the saved servers."""
        self._show_saved(state)
        self.test.setText(tr("Testing…") if state.busy else tr("Test"))
        if state.busy and holds_focus(self.test):
            self.model.setFocus()  # where what the test finds is chosen
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
        painter = QPainter(self)
        painter.fillRect(self.rect(), self._theme.colour("window"))
        painter.fillRect(0, 0, self._side.width(), self.height(), self._theme.colour("side"))

    def _listed(self) -> tuple[str, ...]:
        return tuple(self.model.itemText(row) for row in range(self.model.count()))

    def _line(self, name: str, hint: str) -> QLineEdit:
        line = QLineEdit(self)
        line.setAccessibleName(name)
        line.setPlaceholderText(hint)
        return line

    def _show_saved(self, state: RemoteState) -> None:
        typed = self.name.text().strip()
        before, self._state = self._state.saved, state
        names = [one.name for one in state.saved]
        # An empty list would not show that it has keyboard focus.
        self.list.setEnabled(bool(names))
        if names == [self.list.item(row).text() for row in range(self.list.count())] and before == state.saved:
            return
        self.list.blockSignals(True)
        self.list.clear()
        self.list.addItems(names)
        self.list.setCurrentRow(names.index(typed) if typed in names else -1)
        self.list.blockSignals(False)
        self.remove.setEnabled(bool(self.former))

    def _lay_out(self) -> None:
        self._side = QWidget(self)
        side = QVBoxLayout(self._side)
        side.setContentsMargins(0, EDGE, 0, GROUP)
        side.setSpacing(RELATED)
        side.addWidget(self.list, 1)
        below = QHBoxLayout()
        below.setContentsMargins(RELATED, 0, RELATED, 0)
        below.addWidget(self.add)
        QWidget.setTabOrder(self.list, self.add)
        side.addLayout(below)
        whole = QHBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addWidget(self._side)
        whole.addLayout(self._right(), 1)

    def _right(self) -> QVBoxLayout:
        column = QVBoxLayout()
        column.setContentsMargins(EDGE, EDGE, EDGE, GROUP)
        column.setSpacing(RELATED)
        headline = QLabel(tr("Use a model on another computer"), self)
        headline.setFont(self._theme.font("heading2"))
        column.addWidget(headline)
        words = tr("Any server with OpenAI's interface: vLLM, SGLang, llama-server, Ollama, LM Studio, HeteGen.")
        warning = tr("What you write in such a chat, and all of the conversation, is sent there.")
        column.addWidget(Paragraph(self._theme, words))
        column.addWidget(Paragraph(self._theme, warning, "muted"))
        column.addSpacing(GROUP - RELATED)
        column.addLayout(self._form())
        column.addSpacing(GROUP - RELATED)
        column.addWidget(self.steps)
        column.addWidget(self.error)
        column.addStretch(1)
        column.addLayout(self._buttons())
        return column

    def _form(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(RELATED)
        grid.setVerticalSpacing(RELATED)
        rows = (
            (tr("Name"), self.name),
            (tr("Address"), self.address),
            ("", self.presets),
            (tr("API key"), self.key),
            (tr("Model"), self.model),
        )
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
        for button in (self.test, self.save, self.remove):
            row.addWidget(button)
        row.addStretch(1)
        row.addWidget(self._button(tr("Close"), self.reject))
        row.addWidget(self.connect_button)
        return row

    def _button(self, words: str, pressed: Callable[[], object]) -> QPushButton:
        button = QPushButton(words, self)
        button.setAutoDefault(False)
        button.clicked.connect(lambda: pressed())
        return button

    def _entered(self) -> SavedEndpoint:
        address = self.address.text().strip()
        host = address.partition("://")[2] or address
        return SavedEndpoint(
            self.name.text().strip() or host.partition("/")[0], address, self.model.currentText().strip()
        )

    def _tell(self, wish: SignalInstance) -> None:
        entered = self._entered()
        former = self.former
        self.name.setText(entered.name)
        wish.emit(entered, self.key.text(), former)

    @Slot(int)
    def _on_chosen(self, row: int) -> None:
        """Fill the form with a saved server, or clear it for a new one."""
        one = self._state.saved[row] if 0 <= row < len(self._state.saved) else SavedEndpoint("", "")
        self.name.setText(one.name)
        self.address.setText(one.address)
        self.key.clear()
        self.key.setPlaceholderText(tr("as kept") if one.name else tr("only if the server asks for one"))
        self.model.clear()
        self.model.setCurrentText(one.model)
        self.steps.clear()
        self.error.hide()
        self.remove.setEnabled(bool(one.name))

    @Slot(int)
    def _on_preset(self, row: int) -> None:
        if row:
            self.address.setText(list(PRESETS.values())[row - 1])
            self.name.setText(self.name.text() or list(PRESETS)[row - 1])

    @Slot(str)
    def _on_typed(self, text: str) -> None:
        self.test.setEnabled(bool(text.strip()))
        self.connect_button.setEnabled(bool(text.strip()))
        self.save.setEnabled(bool(text.strip()))

    @Slot()
    def _on_connect(self) -> None:
        self._tell(self.connect_wished)
        self.accept()


def step_line(outcome: Outcome) -> str:
    """Describe the outcome of one test step."""
    words = {
        "address": (tr("The address can be read"), tr("The address cannot be read")),
        "name": (tr("The computer is found by its name"), tr("The computer is not found by its name")),
        "connection": (tr("Something answers there"), tr("Nothing answers there")),
        "certificate": (tr("The connection can be trusted"), tr("The connection cannot be trusted")),
        "key": (tr("The key is accepted"), tr("The key is refused")),
        "path": (tr("It is a model server"), tr("It is not a model server")),
        "models": (tr("It names its models"), tr("It names no models")),
    }
    good, bad = words[outcome.step]
    return f"{DONE}  {good}" if outcome.error is None else f"{FAILED}  {bad}"
