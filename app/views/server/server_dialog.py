"""The page of the local server: a switch, the address to copy, clients, running replies, and the log."""

from __future__ import annotations

import time

from PySide6.QtCore import Signal, Slot
from PySide6.QtGui import QGuiApplication, QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from app.engine.server_state import ServerState
from app.i18n import formatting
from app.i18n.translator import said_error, tr
from app.settings.theme import EDGE, GROUP, INSIDE, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import TickBox
from app.views.controls.log_box import LogBox
from app.views.controls.paragraph import Paragraph
from core.server.activity import Entry, Live, Snapshot

SIZE = (640, 620)
SHOWN_CLIENTS = 8


class ServerDialog(Dialog):
    """Shows and controls the local server.

    Signals: `start_wished(wide)`; `stop_wished`; `key_wished` for another key.
    """

    start_wished = Signal(bool)
    stop_wished = Signal()
    key_wished = Signal()

    def __init__(self, theme: Theme, state: ServerState, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._state = theme, state
        self.setWindowTitle(tr("Local server"))
        self.setObjectName("server")
        self.resize(*SIZE)
        self.headline = QLabel(self)
        self.headline.setFont(theme.font("heading2"))
        self.sentence = Paragraph(theme, "")
        self.warning = Paragraph(theme, "", "danger")
        self.wide = TickBox(theme, tr("Other computers on this network may connect, with a key"), self)
        self.address, self._address_row = self._copied(tr("Address"))
        self.key, self._key_row = self._copied(tr("API key"))
        self.key.setEchoMode(QLineEdit.EchoMode.PasswordEchoOnEdit)
        self.new_key = QPushButton(tr("New key"), self._key_row)
        self.new_key.setToolTip(tr("The server starts anew, and programs with the old key are refused."))
        self.new_key.setAutoDefault(False)
        self.new_key.clicked.connect(self.key_wished)
        row = self._key_row.layout()
        assert row is not None
        row.addWidget(self.new_key)
        self.clients = Paragraph(theme, "", "muted")
        self.live = Paragraph(theme, "", "muted")
        self.log = LogBox(theme, self)
        self.switch = QPushButton(self)
        self.switch.setObjectName("switch")
        self.switch.setProperty("primary", "true")
        self.switch.clicked.connect(self._on_switch)
        self._lay_out()
        self.show_state(state)
        self.switch.setFocus()

    @Slot(object)
    def show_state(self, state: ServerState) -> None:
        """Show the server's state."""
        self._state = state
        on, off = state.phase == "on", state.phase == "off"
        words = {"off": tr("The server is off"), "starting": tr("Starting…"), "on": tr("The server runs")}
        self.headline.setText(words.get(state.phase, tr("Stopping…")))
        self.sentence.setText(
            tr("Editors and other programs can use the loaded model, as OpenAI's or Anthropic's interface has it.")
        )
        self._warn(state)
        self.wide.setVisible(not on)
        self.wide.setEnabled(off)
        self.address.setText(state.address)
        self._address_row.setVisible(on)
        self.key.setText(state.key)
        self._key_row.setVisible(on and bool(state.key))
        self.switch.setText(tr("Stop the server") if on else tr("Start the server"))
        self.switch.setEnabled(on or off)
        self._show_activity(state.activity)

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    def _warn(self, state: ServerState) -> None:
        text = said_error(state.error) if state.error is not None else ""
        if state.wide and state.phase == "on":
            text = tr("Other computers on this network can use it: give the key only to those that may.")
        self.warning.setText(text)
        self.warning.setVisible(bool(text))

    def _show_activity(self, shown: Snapshot) -> None:
        clients = [client for client, _ in reversed(shown.clients)][:SHOWN_CLIENTS]
        self.clients.setText("\n".join(clients) or tr("Nobody yet"))
        self.live.setText("\n".join(map(_live_line, shown.live[:SHOWN_CLIENTS])) or tr("None"))
        self.log.show_lines(map(_log_line, shown.log))

    def _copied(self, name: str) -> tuple[QLineEdit, QWidget]:
        """Create a read-only line with its name and a copy button, in a row."""
        row = QWidget(self)
        line, label, button = QLineEdit(row), QLabel(name, row), QPushButton(tr("Copy"), row)
        line.setReadOnly(True)
        line.setAccessibleName(name)
        label.setBuddy(line)
        # Align the lines, however long the names are in this language.
        label.setMinimumWidth(max(QLabel(words).sizeHint().width() for words in (tr("Address"), tr("API key"))))
        button.setAccessibleName(tr("Copy: {}").format(name))
        button.clicked.connect(lambda: QGuiApplication.clipboard().setText(line.text()))
        inside = QHBoxLayout(row)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(RELATED)
        inside.addWidget(label)
        inside.addWidget(line, 1)
        inside.addWidget(button)
        return line, row

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(RELATED)
        for widget in (self.headline, self.sentence, self.warning, self.wide, self._address_row, self._key_row):
            column.addWidget(widget)
        titles = (tr("Connected"), self.clients), (tr("Being answered"), self.live), (tr("Log"), self.log)
        for title, widget in titles:
            column.addSpacing(GROUP - RELATED)
            column.addWidget(self._heading(title))
            column.addSpacing(INSIDE - RELATED)
            column.addWidget(widget, 1 if widget is self.log else 0)
        close = QPushButton(tr("Close"), self)
        close.clicked.connect(self.reject)
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addStretch(1)
        row.addWidget(close)
        row.addWidget(self.switch)
        column.addLayout(row)

    def _heading(self, text: str) -> QLabel:
        label = QLabel(text, self)
        font = self._theme.font()
        font.setWeight(font.Weight.DemiBold)
        label.setFont(font)
        return label

    @Slot()
    def _on_switch(self) -> None:
        if self._state.phase == "on":
            self.stop_wished.emit()
        else:
            self.start_wished.emit(self.wide.isChecked())


def _live_line(live: Live) -> str:
    stage = {"waiting": tr("waiting"), "reading": tr("reading the prompt")}.get(live.stage, tr("replying"))
    speed = "" if live.tok_s is None else ", " + tr("{} tokens/s").format(formatting.rate(live.tok_s))
    return f"{live.client}  {live.path}  {stage}{speed}"


def _log_line(entry: Entry) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(entry.at))
    tokens = f"  {entry.tokens} " + tr("tokens") if entry.tokens else ""
    return f"{at}  {entry.status}  {entry.path}  {entry.client}  {formatting.seconds(entry.seconds)}{tokens}"
