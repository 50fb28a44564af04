"""The form for a tool server, and the form to paste JSON. Stored keys are shown as dots."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import said_error, tr
from app.settings.theme import EDGE, GROUP, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import ChoiceBox, TextBox
from app.views.controls.paragraph import Paragraph
from core.errors import BadRequest, HeteGenError
from core.sentence import sentence
from core.tools.dialects import check_server, parse_servers
from core.tools.server import ToolServer

SIZE = (560, 440)
DOTS = "••••••••"
FIELD_HEIGHT = 90
WINDOWS = os.name == "nt"
WINDOWS_PARTS = re.compile(r"(\\*)(.?)", re.DOTALL)
"""Backslashes and the character after them."""


class Form(Dialog):
    """Base of both forms: headline, error text, and buttons.

    Signal: `entered(result of made)`.
    """

    entered = Signal(object)

    def __init__(self, theme: Theme, title: str, words: str, save: str, parent: QWidget | None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWindowTitle(title)
        self.resize(theme.grown(SIZE[0]), SIZE[1])
        headline = QLabel(title, self)
        headline.setFont(theme.font("heading2"))
        self.error = Paragraph(theme, "", "danger")
        self.error.hide()
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(EDGE, EDGE, EDGE, GROUP)
        self.column.setSpacing(RELATED)
        self.column.addWidget(headline)
        self.column.addWidget(Paragraph(theme, words, "muted"))
        self.save = QPushButton(save, self)
        self.save.setProperty("primary", "true")
        self.save.setDefault(True)
        self.save.clicked.connect(self._on_save)

    def made(self) -> object:
        """Return what was entered. Raises BadRequest."""
        raise NotImplementedError

    def finish(self) -> None:
        """Add the error text and the buttons below the fields."""
        cancel = QPushButton(tr("Cancel"), self)
        cancel.setAutoDefault(False)
        cancel.clicked.connect(self.reject)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(cancel)
        row.addWidget(self.save)
        self.column.addWidget(self.error)
        self.column.addLayout(row)

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    @Slot()
    def _on_save(self) -> None:
        try:
            made = self.made()
        except HeteGenError as error:
            self.error.setText(said_error(error))
            self.error.show()
            return
        self.entered.emit(made)
        self.accept()


class ServerForm(Form):
    """Name, command or address, and keys of one server."""

    def __init__(self, theme: Theme, server: ToolServer | None, taken: set[str], parent: QWidget | None = None) -> None:
        """`taken`: names of the other servers."""
        title = tr("Add a tool server") if server is None else tr("Edit the tool server")
        words = tr("A program that is started here, or an address where one waits, on this computer or another.")
        super().__init__(theme, title, words, tr("Save"), parent)
        self._former = server or ToolServer("")
        self._taken = taken
        self.name = QLineEdit(self._former.name, self)
        self.kind = ChoiceBox(theme, self)
        self.kind.addItems([tr("A program"), tr("An address")])
        self.kind.setCurrentIndex(1 if self._former.url else 0)
        self.kind.currentIndexChanged.connect(self._on_kind)
        self.command = QLineEdit(written(self._former), self)
        self.command.setPlaceholderText("npx -y @modelcontextprotocol/server-filesystem ~/notes")
        self.url = QLineEdit(self._former.url, self)
        self.url.setPlaceholderText("http://127.0.0.1:8000/mcp")
        self.keys = TextBox(theme, self)
        self.keys.setFixedHeight(FIELD_HEIGHT)
        self.keys.setTabChangesFocus(True)
        self.keys.setPlainText("\n".join(f"{name}={DOTS}" for name in self._kept()))
        self._lay_out()
        self._on_kind()
        self.name.setFocus()

    def made(self) -> ToolServer:
        """Return the server as entered. Raises BadRequest."""
        name = self.name.text().strip()
        if not name or name in self._taken:
            why = "" if not name else sentence("Another server has the name {}.", name)
            raise BadRequest("The server needs a name of its own.", why, "Enter another one.")
        entered = entered_keys(self.keys.toPlainText(), self._kept())
        if self.kind.currentIndex() == 1:
            made = ToolServer(name, url=self.url.text().strip(), headers=entered, on=self._former.on)
        else:
            command, *args = split_command(self.command.text()) or [""]
            made = ToolServer(name, command, tuple(args), entered, self._former.folder, on=self._former.on)
        check_server(made)
        return made

    def _kept(self) -> Mapping[str, str]:
        return self._former.headers if self._former.url else self._former.environment

    def _lay_out(self) -> None:
        grid = QGridLayout()
        grid.setHorizontalSpacing(RELATED)
        grid.setVerticalSpacing(RELATED)
        self._labels = [QLabel(self) for _ in range(5)]
        fields = (self.name, self.kind, self.command, self.url, self.keys)
        words = (tr("Name"), tr("Kind"), tr("Command"), tr("Address"), "")
        for row, (label, name, field) in enumerate(zip(self._labels, words, fields, strict=True)):
            label.setText(name)
            label.setBuddy(field)
            field.setAccessibleName(name)
            grid.addWidget(label, row, 0, Qt.AlignmentFlag.AlignTop if row == 4 else Qt.AlignmentFlag.AlignVCenter)
            grid.addWidget(field, row, 1)
        grid.setColumnStretch(1, 1)
        self.column.addLayout(grid)
        self.hint = Paragraph(self._theme, "", "muted")
        self.column.addWidget(self.hint)
        self.column.addStretch(1)
        self.finish()

    @Slot()
    def _on_kind(self) -> None:
        is_address = self.kind.currentIndex() == 1
        for row, shown in ((2, not is_address), (3, is_address)):
            self._labels[row].setVisible(shown)
        self.command.setVisible(not is_address)
        self.url.setVisible(is_address)
        name = tr("Headers") if is_address else tr("Environment")
        self._labels[4].setText(name)
        self.keys.setAccessibleName(name)
        self.keys.setPlaceholderText("Authorization=Bearer …" if is_address else "API_KEY=…")
        self.hint.setText(tr("One NAME=value a line. Values are kept in the system's keyring and shown as dots."))


class PasteForm(Form):
    """A field for JSON in the form of other programs' settings."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        words = tr(
            "As for Claude Desktop, Cursor or VS Code. A server of a name that is there already takes its place."
        )
        super().__init__(theme, tr("Paste tool servers"), words, tr("Add"), parent)
        self.text = TextBox(theme, self)
        self.text.setFont(theme.font("code"))
        self.text.setAccessibleName("JSON")
        self.text.setTabChangesFocus(True)
        self.text.setPlaceholderText(EXAMPLE)
        self.column.addWidget(self.text, 1)
        self.finish()
        self.text.setFocus()

    def made(self) -> tuple[ToolServer, ...]:
        """Return the servers in the pasted text. Raises BadRequest."""
        return parse_servers(self.text.toPlainText())


EXAMPLE = """{
  "mcpServers": {
    "files": {
      "command": "npx",
      "args": ["-y", "@modelcontextprotocol/server-filesystem", "~/notes"]
    }
  }
}"""


def written(server: ToolServer) -> str:
    """Join a command and its arguments to a line that `split_command` reads."""
    parts = [server.command, *server.args] if server.command else []
    return subprocess.list2cmdline(parts) if WINDOWS else shlex.join(parts)


def split_command(text: str) -> list[str]:
    """Split a command line. Raises BadRequest for an unclosed quotation mark."""
    try:
        return windows_words(text) if WINDOWS else shlex.split(text)
    except ValueError as error:
        raise BadRequest("The command cannot be read.", "A quotation mark is missing.", "Add it.") from error


def windows_words(line: str) -> list[str]:
    """Split a command line as Windows programs do: backslashes are part of paths unless a quotation mark follows.

    Raises ValueError for an unclosed quotation mark.
    """
    words: list[str] = []
    word, quoted = None, False  # None between words: "" is one, too
    for slashes, sign in WINDOWS_PARTS.findall(line):
        if sign == '"':
            word = (word or "") + slashes[: len(slashes) // 2] + sign * (len(slashes) % 2)
            quoted ^= len(slashes) % 2 == 0
            continue
        ends = sign in (" ", "\t") and not quoted
        if part := slashes if ends else slashes + sign:
            word = (word or "") + part
        if ends and word is not None:
            words.append(word)
            word = None
    if quoted:
        raise ValueError(line)
    return words if word is None else [*words, word]


def entered_keys(text: str, kept: Mapping[str, str]) -> dict[str, str]:
    """Parse NAME=value lines; dots stand for the stored value. Raises BadRequest."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise BadRequest(sentence("The line {} has no name and value.", line[:40]), "", "Write NAME=value.")
        found[name.strip()] = kept.get(name.strip(), "") if value.strip() == DOTS else value.strip()
    return found
