"""The main window: top bar, three panes, status line. Lays out widgets and opens menus; decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QByteArray, QMargins, Qt, Signal, Slot
from PySide6.QtGui import (
    QAccessible,
    QAccessibleAnnouncementEvent,
    QAction,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QKeyEvent,
    QKeySequence,
    QShowEvent,
)
from PySide6.QtWidgets import QApplication, QFileDialog, QMainWindow, QMenu, QStackedWidget, QVBoxLayout, QWidget

from app import NAME
from app.conversations.chat_model import ChatModel
from app.i18n.translator import tr
from app.settings.theme import WINDOW_MINIMUM, WINDOW_SIZE, Theme
from app.views.chat.chips import ComposerChips
from app.views.chat.composer import Composer, files_in
from app.views.chat.empty_chat import EmptyChat
from app.views.chat.transcript import Transcript
from app.views.controls.controls import Pane
from app.views.frame.notice_bar import NoticeBar
from app.views.frame.panes import Panes
from app.views.frame.shortcuts_page import ShortcutsPage
from app.views.frame.status_line import StatusLine
from app.views.frame.top_bar import TopBar
from core.weights.gguf.names import SUFFIX, is_gguf

ACTIONS = (
    ("new_chat", "New conversation", "plus", "Ctrl+N"),
    ("search", "Search conversations", "search", "Ctrl+K"),
    ("conversation", "This conversation…", "edit", "Ctrl+."),
    ("attach", "Attach files…", "paperclip", "Ctrl+U"),
    ("export", "Export as Markdown…", "save", "Ctrl+S"),
    ("regenerate", "Write another reply", "regenerate", "Ctrl+R"),
    ("models", "Models…", "chip", "Ctrl+M"),
    ("open_file", "Open a model file…", "folder", "Ctrl+Shift+O"),
    ("open_model", "Open a model folder…", "folder", "Ctrl+O"),
    ("builtin", "Load the built-in guide", "mark", ""),
    ("gpu", "Graphics card…", "card", "Ctrl+G"),
    ("remote", "Remote model…", "external", "Ctrl+Shift+M"),
    ("tools", "Tools…", "tool", "Ctrl+Shift+T"),
    ("server", "Local server…", "external", "Ctrl+Shift+S"),
    ("sidebar", "Show or hide the conversations", "sidebar", "Ctrl+B"),
    ("live", "Show or hide the live view", "live", "Ctrl+L"),
    ("larger", "Larger type", "", "Ctrl++, Ctrl+="),
    ("smaller", "Smaller type", "", "Ctrl+-"),
    ("normal", "Type of normal size", "", "Ctrl+0"),
    ("settings", "Settings…", "settings", "Ctrl+,"),
    ("shortcuts", "Keyboard shortcuts", "keyboard", "F1"),
    ("about", "About HeteGen…", "info", ""),
    ("quit", "Quit", "close", "Ctrl+Q"),
)
"""(id, words, icon, keys) of every action."""
ANNOUNCED = 1000
"""Longest announcement of a reply, in characters, for screen readers."""
KEYS_ONLY = ("regenerate", "larger", "smaller", "normal")
"""Actions without a menu entry."""

TITLE_BAR = 32
"""Approximate height of a title bar, in pixels."""


class MainWindow(QMainWindow):
    """The program's window.

    Signals: `acted(action id)`; `model_chosen(path)`; `files(list[Path])` to attach; `shown` once; `search_wished`;
    `closing`.
    """

    acted = Signal(str)
    model_chosen = Signal(str)
    files = Signal(object)
    shown = Signal()
    search_wished = Signal()
    closing = Signal()

    def __init__(self, theme: Theme, chat: ChatModel) -> None:
        super().__init__()
        self.theme = theme
        self._was_shown = False
        self.may_close: Callable[[], bool] = lambda: True
        """Called before the window closes; False keeps it open."""
        self._state_at_close = ""
        self.setWindowTitle(NAME)
        self.setMinimumSize(*WINDOW_MINIMUM)
        self.resize(*WINDOW_SIZE)
        self.top = TopBar(theme)
        self.transcript = Transcript(theme, chat)
        self.empty = EmptyChat(theme)
        self.notices = NoticeBar(theme)
        self.chips = ComposerChips(theme)
        self.composer = Composer(theme)
        self.composer.files.connect(self._take)
        self.status = StatusLine(theme)
        self.actions_by_id = {id: self._action(id, *rest) for id, *rest in ACTIONS}
        self._stack = QStackedWidget()
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self.transcript)
        self.panes = Panes(theme, self._chat_pane())
        self._lay_out()
        self.setAcceptDrops(True)
        self.composer.attach_requested.connect(self.actions_by_id["attach"].trigger)
        self.top.menu_pressed.connect(self._open_menu)
        self.top.sidebar_pressed.connect(self.actions_by_id["sidebar"].trigger)
        self.top.live_pressed.connect(self.actions_by_id["live"].trigger)
        chat.rowsInserted.connect(self._show_right_page)
        chat.rowsRemoved.connect(self._show_right_page)
        chat.modelReset.connect(self._show_right_page)
        self._chat = chat
        theme.changed.connect(self._on_theme)

    def focusNextPrevChild(self, next: bool) -> bool:
        self.transcript.order_stops()
        moved = super().focusNextPrevChild(next)
        self.transcript.show_focus()
        return moved

    def set_side(self, name: str, widget: QWidget) -> None:
        """Put a pane to the left ("sidebar") or right ("live") of the chat."""
        self.panes.add(name, widget)

    def fold(self, name: str) -> None:
        """Toggle a pane."""
        self.panes.set_folded(name, folded=self.panes.shown(name))

    def search(self) -> None:
        """Focus the search field, unfolding its pane."""
        self.panes.set_folded("sidebar", folded=False)
        self.search_wished.emit()

    def show_shortcuts(self) -> None:
        """Show the page of keyboard shortcuts."""
        ShortcutsPage(self.theme, tuple((words, keys) for _, words, _, keys in ACTIONS if keys), self).open()

    def ask_for_folder(self) -> None:
        """Let the user choose a model folder."""
        if path := QFileDialog.getExistingDirectory(self, tr("Open a model folder")):
            self.model_chosen.emit(path)

    def ask_for_model_file(self) -> None:
        """Let the user choose a model file."""
        path, _ = QFileDialog.getOpenFileName(self, tr("Open a model file"), "", f"GGUF (*{SUFFIX})")
        if path:
            self.model_chosen.emit(path)

    def ask_for_files(self) -> None:
        """Let the user choose files to attach."""
        names, _ = QFileDialog.getOpenFileNames(self, tr("Attach files"))
        if names:
            self.files.emit([Path(name) for name in names])

    @Slot()
    def wake(self) -> None:
        """Bring the window to the front, because the program was started again."""
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)
        self.show()
        self.raise_()
        self.activateWindow()

    def announce(self, words: str) -> None:
        """Announce a finished reply to screen readers, "" = one not shown; alert users who look at another window."""
        if not self.isActiveWindow():
            QApplication.alert(self)
        if words and QAccessible.isActive():
            QAccessible.updateAccessibility(QAccessibleAnnouncementEvent(self, words[:ANNOUNCED]))

    def state(self) -> str:
        """Return the geometry, to be saved."""
        if self._state_at_close:
            return self._state_at_close
        return bytes(self.saveGeometry().toBase64().data()).decode()

    def restore(self, state: str) -> None:
        """Restore a saved geometry; Qt ignores invalid values."""
        self.restoreGeometry(QByteArray.fromBase64(state.encode()))

    def fit_screen(self) -> None:
        """Shrink the window to the screen's available size, including its frame."""
        room = self.screen().availableGeometry().size().shrunkBy(QMargins(0, 0, 0, TITLE_BAR))
        self.resize(self.size().boundedTo(room))

    def _chat_pane(self) -> QWidget:
        pane = Pane(self.theme, "window")
        column = QVBoxLayout(pane)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._stack, 1)
        column.addWidget(self.notices, 0)
        column.addWidget(self.chips)
        column.addWidget(self.composer)
        return pane

    def _lay_out(self) -> None:
        whole = QWidget()
        column = QVBoxLayout(whole)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.top)
        column.addWidget(self.panes, 1)
        column.addWidget(self.status)
        self.setCentralWidget(whole)

    def _action(self, id: str, words: str, icon: str, keys: str) -> QAction:
        action = QAction(tr(words), self)
        if icon:
            action.setIcon(self.theme.icon(icon, "muted"))
        if keys:
            action.setShortcuts([QKeySequence(key) for key in keys.split(", ")])
        action.setObjectName(id)
        action.triggered.connect(self._on_action)
        self.addAction(action)
        return action

    def _open_menu(self) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        for id, *_ in ACTIONS:
            if id in ("models", "sidebar", "settings", "quit"):
                menu.addSeparator()
            if id not in KEYS_ONLY:
                menu.addAction(self.actions_by_id[id])
        corner = self.top.menu.mapToGlobal(self.top.menu.rect().bottomRight())
        corner.setX(corner.x() - menu.sizeHint().width())
        menu.popup(corner)

    def _on_action(self) -> None:
        self.acted.emit(self.sender().objectName())

    def _show_right_page(self) -> None:
        self._stack.setCurrentWidget(self.transcript if self._chat.rowCount() else self.empty)

    def _on_theme(self) -> None:
        for id, _, icon, _ in ACTIONS:
            if icon:
                self.actions_by_id[id].setIcon(self.theme.icon(icon, "muted"))
        self.update()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if not self._was_shown:
            self._was_shown = True
            self.composer.take_focus()
            self.shown.emit()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if files_in(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        if files := files_in(event.mimeData()):
            event.acceptProposedAction()
            self._take(files)

    def _take(self, files: list[Path]) -> None:
        """Open dropped or pasted models; attach all other files."""
        models = [file for file in files if is_gguf(file)]
        if models:
            self.model_chosen.emit(str(models[0]))
        if others := [file for file in files if file not in models]:
            self.files.emit(others)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        # Not a shortcut: an editor in the transcript handles Esc first.
        if event.key() == Qt.Key.Key_Escape:
            self.acted.emit("stop")
        else:
            super().keyPressEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:
        if not self.may_close():
            event.ignore()
            return
        # Hide at once; ending the reply and freeing the model may take a moment.
        self._state_at_close = self.state()
        self.hide()
        self.closing.emit()
        super().closeEvent(event)
