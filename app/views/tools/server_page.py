"""One tool server: switch, command or address, state, tools with their permissions, and log."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from app.i18n.translator import said_error, tr
from app.settings.theme import GROUP, INSIDE, RELATED, Theme
from app.views.controls.inputs import ChoiceBox, TickBox
from app.views.controls.log_box import LogBox
from app.views.controls.paragraph import Paragraph
from core.tools.book import Book
from core.tools.server import ServerStatus, ServerTool, ToolServer

PERMISSIONS = (("ask", "Ask each time"), ("always", "Always allow"), ("never", "Never allow"))
PHASES = {"on": "It runs", "starting": "It is being started…", "failed": "It does not work", "off": "It is off"}
TOKENS = {"on": "ok", "failed": "danger"}
DESCRIBED = 200
"""Longest description, in characters, shown with a tool."""


class ServerPage(QWidget):
    """Shows one server.

    Signals: `switched(on)`; `tested`; `edited`; `removed`; `permitted(tool, permission)`.
    """

    switched = Signal(bool)
    tested = Signal()
    edited = Signal()
    removed = Signal()
    permitted = Signal(str, str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._shown: tuple[object, ...] = ()
        self.on = TickBox(theme, "", self)
        self.on.clicked.connect(self.switched)
        self.place = Paragraph(theme, "", "muted")
        self.phase = QLabel(self)
        self.error = Paragraph(theme, "", "danger")
        self.log = LogBox(theme, self)
        self._tools = QScrollArea(self)
        self._tools.setWidgetResizable(True)
        self._tools.setFrameShape(QFrame.Shape.NoFrame)
        self._tools.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._tools.setStyleSheet("QScrollArea, QScrollArea > QWidget > QWidget { background: transparent; }")
        self.choices: dict[str, ChoiceBox] = {}
        self._lay_out()

    def show_server(self, server: ToolServer, status: ServerStatus, book: Book) -> None:
        """Show the server's current state."""
        self.on.setText(server.name)
        self.on.setChecked(server.on)
        self.place.setText(server.url or " ".join((server.command, *server.args)))
        self.phase.setText(tr(PHASES[status.phase]))
        self.phase.setStyleSheet(f"color: {getattr(self._theme.colours, TOKENS.get(status.phase, 'muted'))};")
        self.error.setText("" if status.error is None else said_error(status.error))
        self.error.setVisible(status.error is not None)
        self._show_tools(server.name, status.tools, book)
        self.log.show_lines(status.log)

    def _show_tools(self, server: str, tools: tuple[ServerTool, ...], book: Book) -> None:
        permissions = tuple(book.permission(server, tool.name) for tool in tools)
        if self._shown == (server, tools, permissions):
            return
        self._shown = (server, tools, permissions)
        self.choices = {}
        inside = QWidget()
        grid = QGridLayout(inside)
        grid.setContentsMargins(0, 0, RELATED, 0)
        grid.setHorizontalSpacing(GROUP)
        grid.setVerticalSpacing(RELATED)
        for row, (tool, permission) in enumerate(zip(tools, permissions, strict=True)):
            grid.addWidget(self._described(tool), row, 0)
            grid.addWidget(self._choice(tool.name, permission), row, 1, Qt.AlignmentFlag.AlignTop)
        if not tools:
            grid.addWidget(Paragraph(self._theme, tr("None"), "muted"), 0, 0)
        grid.setColumnStretch(0, 1)
        grid.setRowStretch(len(tools) + 1, 1)
        self._tools.setWidget(inside)

    def _described(self, tool: ServerTool) -> QWidget:
        words = " ".join(tool.description.split())
        short = words[:DESCRIBED] + ("…" if len(words) > DESCRIBED else "")
        both = QWidget()
        column = QVBoxLayout(both)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(Paragraph(self._theme, tool.name))
        if short:
            column.addWidget(Paragraph(self._theme, short, "muted"))
        return both

    def _choice(self, tool: str, permission: str) -> ChoiceBox:
        box = ChoiceBox(self._theme)
        box.setAccessibleName(tr("May be called: {}").format(tool))
        box.addItems([tr(words) for _, words in PERMISSIONS])
        box.setCurrentIndex([name for name, _ in PERMISSIONS].index(permission))
        box.activated.connect(lambda row: self.permitted.emit(tool, PERMISSIONS[row][0]))
        self.choices[tool] = box
        return box

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(RELATED)
        column.addLayout(self._head())
        for widget in (self.place, self.error):
            column.addWidget(widget)
        parts: tuple[tuple[str, QWidget, int], ...] = ((tr("Tools"), self._tools, 3), (tr("Log"), self.log, 2))
        for title, part, stretch in parts:
            column.addSpacing(GROUP - RELATED)
            column.addWidget(self._heading(title))
            column.addSpacing(INSIDE - RELATED)
            column.addWidget(part, stretch)

    def _head(self) -> QHBoxLayout:
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addWidget(self.on)
        row.addWidget(self.phase)
        row.addStretch(1)
        for words, signal in ((tr("Test"), self.tested), (tr("Edit…"), self.edited), (tr("Remove"), self.removed)):
            button = QPushButton(words, self)
            button.setAutoDefault(False)
            button.clicked.connect(signal)
            row.addWidget(button)
        return row

    def _heading(self, text: str) -> QLabel:
        label = QLabel(text, self)
        font = self._theme.font()
        font.setWeight(font.Weight.DemiBold)
        label.setFont(font)
        return label
