"""Actions of menus, shortcuts, buttons and links, including the dialogs for files and links."""

from __future__ import annotations

import re
from pathlib import Path

from PySide6.QtCore import QObject, QStandardPaths, Qt, QUrl, Signal, Slot
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtWidgets import QFileDialog, QMessageBox, QWidget

from app import NAME
from app.controllers.attachments import Attachments
from app.conversations.chat_model import ChatModel
from app.conversations.library import Library
from app.conversations.session import Session
from app.i18n.translator import tr
from app.notices.notices import Notice
from app.views.frame.window import MainWindow
from core.paths import builtin_model

SAFE_SCHEMES = ("http", "https", "mailto")
IMPORTED = "JSON (*.json *.jsonl *.ndjson *.zip)"
DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
"""Names that Windows reserves for devices, with any suffix."""
FORMS = {"markdown": ("Markdown (*.md)", ".md"), "json": ("JSON (*.json)", ".json")}


def unsaved_box(parent: QWidget) -> QMessageBox:
    """Build the question shown before a window closes with unsaved conversations."""
    box = QMessageBox(QMessageBox.Icon.Warning, NAME, tr("The disk does not take the last words: they are not saved."))
    box.setParent(parent, box.windowFlags())
    box.setInformativeText(tr("Free some space and try again, or save all conversations in another place."))
    box.addButton(tr("Try again"), QMessageBox.ButtonRole.AcceptRole)
    box.addButton(tr("Save elsewhere…"), QMessageBox.ButtonRole.ActionRole)
    box.addButton(tr("Quit anyway"), QMessageBox.ButtonRole.DestructiveRole)
    box.addButton(QMessageBox.StandardButton.Cancel)
    return box


def suggested(title: str, ending: str) -> str:
    """Suggest a path for an export: in the user's documents, with a name that every system allows."""
    folder = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DocumentsLocation)
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*\s]+', " ", title)[:60].strip(" .")
    name = f"_{name}" if DEVICES.fullmatch(name) else name
    return str(Path(folder) / f"{name or tr('Conversation')}{ending}")


class Actions(QObject):
    """Dispatcher of user actions.

    Signals: `load_wished(source)`; `type_wished("larger", "smaller" or "normal")`; one `…_wished` for each dialog to
    open.
    """

    load_wished = Signal(str)
    type_wished = Signal(str)
    settings_wished = Signal()
    models_wished = Signal()
    log_wished = Signal()
    about_wished = Signal()
    gpu_wished = Signal()
    server_wished = Signal()
    remote_wished = Signal()
    tools_wished = Signal()

    def __init__(
        self, window: MainWindow, session: Session, chat: ChatModel, library: Library, attachments: Attachments
    ) -> None:
        super().__init__(window)
        self._window, self._session, self._chat, self._library = window, session, chat, library
        self._attachments = attachments

    @Slot(str)
    def act(self, action: str) -> None:
        """Carry out an action of the window by its id."""
        match action:
            case "new_chat":
                self._chat.show(self._library.new())
                self._window.composer.take_focus()
            case "open_file":
                self._window.ask_for_model_file()
            case "open_model":
                self._window.ask_for_folder()
            case "builtin":
                self.load_wished.emit(str(builtin_model()))
            case "models" | "token":
                self.models_wished.emit()
            case "settings":
                self.settings_wished.emit()
            case "log":
                self.log_wished.emit()
            case "gpu":
                self.gpu_wished.emit()
            case "server":
                self.server_wished.emit()
            case "remote":
                self.remote_wished.emit()
            case "tools":
                self.tools_wished.emit()
            case "sidebar" | "live":
                self._window.fold(action)
            case "larger" | "smaller" | "normal":
                self.type_wished.emit(action)
            case "conversation":
                self._open_conversation_dialog()
            case "search":
                self._window.search()
            case "shortcuts":
                self._window.show_shortcuts()
            case "about":
                self.about_wished.emit()
            case "quit":
                self._window.close()
            case _:
                self._act_on_chat(action)

    def _act_on_chat(self, action: str) -> None:
        rows = self._chat.rowCount()
        match action:
            case "stop":
                self._session.stop()
            case "retry":
                self._session.retry()
            case "reload":
                self._session.load_wished(self._session.model.wished)
            case "former":
                self._session.load_wished(self._session.model.former)
            case "answered":
                self._library.open(self._session.answered.id, "")
            case "regenerate" if rows:
                self._session.regenerate(self._chat.turn(rows - 1).id)
            case "attach":
                self._window.ask_for_files()
            case "enlarge":
                self._attachments.enlarge()
            case "export" if rows:
                self.export(self._chat.conversation.id, "markdown")
            case _:
                pass

    def _open_conversation_dialog(self) -> None:
        # Imported late: most starts never open it.
        from app.views.conversations.conversation_dialog import ConversationDialog

        shown = self._chat.conversation
        dialog = ConversationDialog(self._window.theme, shown.system, shown.preset, self._window)
        dialog.applied.connect(self._library.describe)
        dialog.open()

    @Slot(object)
    def act_on_notice(self, notice: Notice) -> None:
        """Carry out the action of a notice's button."""
        if notice.action == "copy_details":
            QGuiApplication.clipboard().setText(notice.details)
        else:
            self.act(notice.action)

    @Slot(str)
    def submit(self, text: str) -> None:
        """Ask a question. If it cannot be asked now, put the text back into the composer."""
        ready = self._attachments.ready(text)
        if ready is None or not self._session.submit(text, ready.documents, ready.in_parts, ready.counts):
            self._window.composer.set_text(text)
        else:
            self._attachments.clear()

    @Slot()
    def recall(self) -> None:
        """Edit the last question in place (Up in an empty composer)."""
        for row in range(self._chat.rowCount() - 1, -1, -1):
            turn = self._chat.turn(row)
            view = self._window.transcript.view_of(turn.id)
            if turn.role == "user" and view is not None:
                view.begin_edit()
                return

    @Slot(str, str)
    def wish(self, action: str, id: str) -> None:
        """Carry out a button under a turn."""
        if action in ("previous", "next") and not self._session.state.busy_here:
            self._chat.switch(id, -1 if action == "previous" else 1)
        elif action == "regenerate":
            self._session.regenerate(id)
        elif action == "take_back":
            self._session.stop()
        elif action == "continue":
            self._session.go_on(id)
        elif action.startswith("allow_"):
            self._session.replies.tools.decide(id, action.removeprefix("allow_"))

    @Slot(str, str)
    def export(self, id: str, form: str) -> None:
        """Export a conversation, or all of them if `id` is "", to a file chosen by the user."""
        words, ending = FORMS[form]
        title = self._library.title(id) if id else tr("Conversations")
        name, _ = QFileDialog.getSaveFileName(self._window, tr("Export"), suggested(title, ending), words)
        if name:
            self._library.export(id, form, Path(name))

    def may_quit(self) -> bool:
        """Return whether the window may close, asking first if unsaved conversations would be lost."""
        while self._library.unsaved:
            box = unsaved_box(self._window)
            box.exec()
            box.deleteLater()
            match box.buttonRole(box.clickedButton()):
                case QMessageBox.ButtonRole.AcceptRole:
                    continue
                case QMessageBox.ButtonRole.ActionRole if not self._save_elsewhere():
                    continue
                case QMessageBox.ButtonRole.ActionRole | QMessageBox.ButtonRole.DestructiveRole:
                    return True
                case _:
                    return False
        return True

    def _save_elsewhere(self) -> bool:
        words, ending = FORMS["json"]
        place = suggested(tr("Conversations"), ending)
        name, _ = QFileDialog.getSaveFileName(self._window, tr("Export"), place, words)
        return bool(name) and self._library.write("", "json", Path(name))

    @Slot()
    def import_file(self) -> None:
        """Import conversations from a file chosen by the user."""
        name, _ = QFileDialog.getOpenFileName(self._window, tr("Import"), "", IMPORTED)
        if name:
            self._library.read(Path(name))

    @Slot(str)
    def open_link(self, address: str) -> None:
        """Ask before opening a link from a reply or a model card in the browser."""
        self._ask_to_open(address, tr("The model wrote this address. It opens in your browser."))

    @Slot(str)
    def open_page(self, address: str) -> None:
        """Ask before opening a page of the project in the browser."""
        self._ask_to_open(address, tr("It opens in your browser."))

    def _ask_to_open(self, address: str, whose: str) -> None:
        """Ask before opening, with the whole address in view."""
        url = QUrl(address)
        if url.scheme() not in SAFE_SCHEMES:
            return
        box = QMessageBox(QMessageBox.Icon.NoIcon, tr("Open this link?"), address[:500], parent=self._window)
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setInformativeText(whose)
        box.setStandardButtons(QMessageBox.StandardButton.Open | QMessageBox.StandardButton.Cancel)
        opens = box.exec() == QMessageBox.StandardButton.Open
        box.deleteLater()
        if opens:
            QDesktopServices.openUrl(url)
