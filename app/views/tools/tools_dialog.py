"""The page of tool servers: a list, and the selected server's state, tools, permissions and log."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QListWidget, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import EDGE, GROUP, RELATED, Theme
from app.tools.state import ToolsState
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import list_style
from app.views.controls.paragraph import Paragraph
from app.views.tools.server_form import PasteForm, ServerForm
from app.views.tools.server_page import ServerPage
from core.tools.server import ToolServer

SIZE = (860, 640)
LIST_WIDTH = 220
MARKS = {"on": "●", "starting": "◌", "failed": "✕", "off": "○"}


class ToolsDialog(Dialog):
    """Shows and edits the tool servers.

    Signals: `put_wished(ToolServer, former name)`; `remove_wished(name)`; `switch_wished(name, on)`;
    `test_wished(name)`; `permit_wished(server, tool, permission)`.
    """

    put_wished = Signal(object, str)
    remove_wished = Signal(str)
    switch_wished = Signal(str, bool)
    test_wished = Signal(str)
    permit_wished = Signal(str, str, str)

    def __init__(self, theme: Theme, state: ToolsState, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._state = theme, state
        self.setWindowTitle(tr("Tools"))
        self.setObjectName("tools")
        self.resize(theme.grown(SIZE[0]), SIZE[1])
        self.list = QListWidget(self)
        self.list.setAccessibleName(tr("Tool servers"))
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setFixedWidth(theme.grown(LIST_WIDTH))
        self.list.setStyleSheet(list_style(theme.colours))
        self.list.currentRowChanged.connect(self._on_chosen)
        self.nothing = Paragraph(
            theme,
            tr("No tool server yet. Add one by its command or address, or paste what its own page shows."),
            "muted",
        )
        self.keyless = Paragraph(
            theme, tr("This system has no keyring that works: keys are forgotten when the program ends."), "danger"
        )
        self.page = ServerPage(theme, self)
        self.page.switched.connect(self._on_switched)
        self.page.tested.connect(lambda: self.test_wished.emit(self.chosen))
        self.page.edited.connect(self._on_edit)
        self.page.removed.connect(lambda: self.remove_wished.emit(self.chosen))
        self.page.permitted.connect(lambda tool, what: self.permit_wished.emit(self.chosen, tool, what))
        self.add = self._button(tr("Add a server…"), self._on_add)
        self.paste = self._button(tr("Paste JSON…"), self._on_paste)
        self._lay_out()
        self.show_state(state)

    @property
    def chosen(self) -> str:
        """The name of the selected server, "" if there is none."""
        row = self.list.currentRow()
        servers = self._state.book.servers
        return servers[row].name if 0 <= row < len(servers) else ""

    @Slot(object)
    def show_state(self, state: ToolsState) -> None:
        """Show a state, keeping the selected server."""
        chosen, self._state = self.chosen, state
        names = [server.name for server in state.book.servers]
        self.list.blockSignals(True)
        while self.list.count() > len(names):
            self.list.takeItem(self.list.count() - 1)
        for row, name in enumerate(names):
            text = f"{MARKS[state.status(name).phase]}  {name}"
            if row < self.list.count():
                self.list.item(row).setText(text)
            else:
                self.list.addItem(text)
        self.list.setCurrentRow(names.index(chosen) if chosen in names else len(names) - 1)
        self.list.blockSignals(False)
        # An empty list would not show that it has keyboard focus.
        self.list.setEnabled(bool(names))
        self.nothing.setVisible(not names)
        self.keyless.setVisible(state.keyless)
        self._on_chosen()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), self._theme.colour("window"))
        painter.fillRect(0, 0, self._side.width(), self.height(), self._theme.colour("side"))

    def _lay_out(self) -> None:
        self._side = QWidget(self)
        side = QVBoxLayout(self._side)
        side.setContentsMargins(RELATED, EDGE, RELATED, GROUP)
        side.setSpacing(RELATED)
        side.addWidget(self.list, 1)
        side.addWidget(self.add)
        side.addWidget(self.paste)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self._side)
        row.addLayout(self._right(), 1)

    def _right(self) -> QVBoxLayout:
        column = QVBoxLayout()
        column.setContentsMargins(EDGE, EDGE, EDGE, GROUP)
        column.setSpacing(RELATED)
        headline = QLabel(tr("Tools for models"), self)
        headline.setFont(self._theme.font("heading2"))
        words = tr(
            "Programs with the Model Context Protocol (MCP). A model may ask for their tools; you allow each call."
        )
        for widget in (headline, Paragraph(self._theme, words), self.nothing, self.keyless):
            column.addWidget(widget)
        column.addSpacing(RELATED)
        column.addWidget(self.page, 1)
        column.addStretch(0)
        close = self._button(tr("Close"), self.reject)
        bottom = QHBoxLayout()
        bottom.addStretch(1)
        bottom.addWidget(close)
        column.addLayout(bottom)
        return column

    def _button(self, words: str, pressed: object) -> QPushButton:
        button = QPushButton(words, self)
        button.setAutoDefault(False)
        button.clicked.connect(pressed)
        return button

    @Slot()
    def _on_chosen(self) -> None:
        name = self.chosen
        self.page.setVisible(bool(name))
        if name:
            server = next(one for one in self._state.book.servers if one.name == name)
            self.page.show_server(server, self._state.status(name), self._state.book)

    @Slot(bool)
    def _on_switched(self, on: bool) -> None:
        self.switch_wished.emit(self.chosen, on)

    @Slot()
    def _on_add(self) -> None:
        self._open_form(None)

    @Slot()
    def _on_edit(self) -> None:
        self._open_form(next(one for one in self._state.book.servers if one.name == self.chosen))

    def _open_form(self, server: ToolServer | None) -> None:
        taken = {one.name for one in self._state.book.servers} - {server.name if server else ""}
        form = ServerForm(self._theme, server, taken, self)
        former = server.name if server else ""
        form.entered.connect(lambda made: self.put_wished.emit(made, former))
        form.finished.connect(form.deleteLater)
        form.open()

    @Slot()
    def _on_paste(self) -> None:
        form = PasteForm(self._theme, self)
        form.entered.connect(self._on_pasted)
        form.finished.connect(form.deleteLater)
        form.open()

    @Slot(object)
    def _on_pasted(self, servers: tuple[ToolServer, ...]) -> None:
        for server in servers:
            self.put_wished.emit(server, "")
