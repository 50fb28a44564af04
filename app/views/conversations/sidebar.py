"""The sidebar: a button for a new conversation, a search field, the list by age, and a bar to undo a deletion."""

from __future__ import annotations

import time
from collections.abc import Sequence

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QPoint, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QKeyEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app.conversations.store import MARK_END, MARK_START, Entry, Hit
from app.settings.theme import INSIDE, RELATED, Theme
from app.text.places import Sought
from app.views.controls.controls import IconButton, Pane
from app.views.controls.inputs import SearchBox
from app.views.conversations.entry_list import EntryModel, Line
from app.views.conversations.entry_view import EntryView
from app.views.conversations.undo_bar import UndoBar

SEARCH_DELAY_MS = 120


class Sidebar(Pane):
    """Shows the entries or hits it is given, and emits what the user wants done.

    Signals: `new_requested`; `opened(id, turn)` (turn is "" unless a search hit was opened); `renamed(id, title)`;
    `pinned(id, bool)`; `deleted(id)`, then either `undeleted(id)` or `delete_expired(id)`; `export_requested(id,
    "markdown" or "json")`; `import_requested`; `searched(text)`, "" when the search ends; `left` on Escape.
    """

    new_requested = Signal()
    opened = Signal(str, str)
    renamed = Signal(str, str)
    pinned = Signal(str, bool)
    deleted = Signal(str)
    undeleted = Signal(str)
    delete_expired = Signal(str)
    export_requested = Signal(str, str)
    import_requested = Signal()
    searched = Signal(str)
    left = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, "side", ("right",), parent)
        self.setAccessibleName(self.tr("Conversations"))
        self._model = EntryModel(self)
        # Queued: the title editor must be gone and the list have keyboard focus again.
        self._model.renamed.connect(self.renamed, Qt.ConnectionType.QueuedConnection)
        self._place = "", 0
        self._new = QPushButton(self.tr("New conversation"), self)
        self._new.setToolTip(self.tr("New conversation (Ctrl+N)"))
        self._new.clicked.connect(self.new_requested)
        self._more = IconButton(theme, "more", self.tr("Import and export"), self)
        self._more.clicked.connect(self._open_common_menu)
        self._search = SearchBox(theme, self)
        self._search.setPlaceholderText(self.tr("Search (Ctrl+K)"))
        self._search.setAccessibleName(self.tr("Search conversations"))
        self._search.textChanged.connect(self._on_typing)
        self._delay = QTimer(self, singleShot=True, interval=SEARCH_DELAY_MS)
        self._delay.timeout.connect(self._on_search)
        self.list = EntryView(theme, self._model, self)
        self.list.setAccessibleName(self.tr("Conversations"))
        self._empty = QLabel(self)
        self._empty.setObjectName("empty")
        self._empty.setWordWrap(True)
        self._empty.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        self.undo = UndoBar(theme, self)
        self._lay_out()
        self._connect_list()
        theme.changed.connect(self._on_theme)
        self._on_theme()
        self.show_entries(())

    def show_entries(self, entries: Sequence[Entry]) -> None:
        """Set the whole list, shown unless a search is active."""
        self._model.set_entries(entries, time.time())
        self._remember_place()
        if not self._search.text().strip():
            self._model.show_all()
            self._go_back()
        self._after_change(self.tr("No conversations yet"))

    def show_hits(self, hits: Sequence[Hit]) -> None:
        """Show search hits."""
        self._model.show_hits(hits)
        self._after_change(self.tr("Nothing found."))

    def set_current(self, conversation: str) -> None:
        """Mark the open conversation."""
        self._model.set_open(conversation)
        self._select_open()

    def set_progress(self, answered: str, waiting: Sequence[str]) -> None:
        """Mark the conversation whose reply is being written, "" = none, and those with a question that waits."""
        self._model.set_progress(answered, waiting)

    def sought(self, turn: str) -> Sought:
        """Return what the search has found in a turn."""
        return Sought.of(self._model.snippet(turn), MARK_START, MARK_END)

    @Slot()
    def focus_search(self) -> None:
        """Focus the search field (Ctrl+K)."""
        self._search.setFocus(Qt.FocusReason.ShortcutFocusReason)
        self._search.selectAll()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Escape and self._search.text():
            self._search.clear()
        elif event.key() == Qt.Key.Key_Down and self._search.hasFocus():
            self.list.setFocus(Qt.FocusReason.TabFocusReason)
            self._select_first()
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self._search.hasFocus():
            self._on_search()
            self._select_first()
            self._on_activated(self.list.currentIndex())
        elif event.key() == Qt.Key.Key_Escape:
            # Not passed on: in the window this key stops the reply.
            self.left.emit()
        else:
            super().keyPressEvent(event)

    def _lay_out(self) -> None:
        head = QHBoxLayout()
        head.setSpacing(INSIDE)
        head.addWidget(self._new, 1)
        head.addWidget(self._more)
        top = QVBoxLayout()
        top.setContentsMargins(12, 12, 12, RELATED)
        top.setSpacing(RELATED)
        top.addLayout(head)
        top.addWidget(self._search)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 1, 0)
        column.setSpacing(0)
        column.addLayout(top)
        column.addWidget(self._empty)
        column.addWidget(self.list, 1)
        column.addWidget(self.undo)

    def _connect_list(self) -> None:
        self.list.activated_at.connect(self._on_activated)
        self.list.delete_pressed.connect(self._on_delete)
        self.list.menu_wished.connect(self._open_menu)
        self.undo.undone.connect(self._on_undone)
        self.undo.expired.connect(self.delete_expired)
        pin = QShortcut(QKeySequence("Ctrl+P"), self.list, context=Qt.ShortcutContext.WidgetShortcut)
        pin.activated.connect(self._on_pin)

    def _after_change(self, words_if_empty: str) -> None:
        nothing = self._model.rowCount() == 0
        self._empty.setText(words_if_empty)
        self._empty.setVisible(nothing)
        self.list.setVisible(not nothing)
        self._select_open()

    def _select_open(self) -> None:
        index = self._model.index_of_open()
        if index.isValid() and not self.list.hasFocus():
            self.list.setCurrentIndex(index)

    def _remember_place(self) -> None:
        """Remember the current row of the list."""
        index = self.list.currentIndex()
        line = self._model.line(index)
        self._place = (line.entry.id if line else "", index.row())

    def _go_back(self) -> None:
        """Return to the remembered conversation, or to the row where it was."""
        name, row = self._place
        if self.list.hasFocus() and row >= 0:
            index = self._model.index_of(name)
            self.list.setCurrentIndex(index if index.isValid() else self._model.line_near(row))

    def _select_first(self) -> None:
        row = self._model.first_line()
        if row is not None:
            self.list.setCurrentIndex(self._model.index(row))

    @Slot(str)
    def _on_typing(self, text: str) -> None:
        if text.strip():
            self._delay.start()
        else:
            self._delay.stop()
            self._model.show_all()
            self._after_change(self.tr("No conversations yet"))
            self.searched.emit("")

    @Slot()
    def _on_search(self) -> None:
        self._delay.stop()
        self.searched.emit(self._search.text().strip())

    @Slot(QModelIndex)
    def _on_activated(self, index: QModelIndex) -> None:
        if line := self._model.line(index):
            self.opened.emit(line.entry.id, line.turn)

    @Slot(QModelIndex)
    def _on_delete(self, index: QModelIndex) -> None:
        if line := self._model.line(index):
            self._delete(line)

    def _delete(self, line: Line) -> None:
        self.undo.offer(line.entry.id, line.entry.title)
        self.deleted.emit(line.entry.id)

    @Slot(str)
    def _on_undone(self, conversation: str) -> None:
        """Restore a conversation and return to it."""
        self.undeleted.emit(conversation)
        self.list.setFocus()
        self.list.setCurrentIndex(self._model.index_of(conversation))

    @Slot()
    def _on_pin(self) -> None:
        if line := self._model.line(self.list.currentIndex()):
            self.pinned.emit(line.entry.id, not line.entry.pinned)

    @Slot(QModelIndex, QPoint)
    def _open_menu(self, index: QModelIndex, place: QPoint) -> None:
        line = self._model.line(index)
        if line is None:
            return
        self.list.setCurrentIndex(index)
        menu = self.menu_for(line, index)
        menu.popup(place)

    def menu_for(self, line: Line, index: QModelIndex) -> QMenu:
        """Return the menu of one conversation."""
        # The list may change while the menu is open: a persistent index follows the row.
        row = QPersistentModelIndex(index)
        name, is_pinned = line.entry.id, line.entry.pinned
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction(self.tr("Rename"), QKeySequence("F2"), lambda: self.list.edit(self._model.index(row.row())))
        words = self.tr("Unpin") if is_pinned else self.tr("Pin")
        menu.addAction(words, QKeySequence("Ctrl+P"), lambda: self.pinned.emit(name, not is_pinned))
        menu.addSeparator()
        menu.addAction(self.tr("Export as Markdown…"), lambda: self.export_requested.emit(name, "markdown"))
        menu.addAction(self.tr("Export as JSON…"), lambda: self.export_requested.emit(name, "json"))
        menu.addSeparator()
        menu.addAction(self.tr("Delete"), QKeySequence("Del"), lambda: self._delete(line))
        return menu

    @Slot()
    def _open_common_menu(self) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction(self.tr("Import conversations…"), self.import_requested.emit)
        menu.addAction(self.tr("Export all as JSON…"), lambda: self.export_requested.emit("", "json"))
        menu.popup(self._more.mapToGlobal(self._more.rect().bottomLeft()))

    @Slot()
    def _on_theme(self) -> None:
        self._new.setIcon(self._theme.icon("plus", "text"))
        self._empty.setStyleSheet(f"color: {self._theme.colours.muted}; padding: {RELATED * 3}px {RELATED * 2}px;")
        self.list.doItemsLayout()
        self.update()
