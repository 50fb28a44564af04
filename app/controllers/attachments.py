"""The files attached to the next question: read, counted, shown as chips, and handed over when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.attached import as_read, tokens_about
from app.conversations.chat_model import ChatModel
from app.engine.app_state import State
from app.engine.task_thread import TaskThread, Tell
from app.engine.worker import Worker
from app.i18n.translator import said
from app.notices import notices
from app.views.chat.chip_words import words_of, words_while_reading
from app.views.chat.document_dialog import DocumentDialog, PasswordDialog
from app.views.frame.window import MainWindow
from core.documents.document import Document
from core.documents.reader import read_document
from core.errors import DocumentLocked, HeteGenError
from core.events import Counted, Message, Request, Stop

REPLY_TOKENS = 512
"""Kept free for the reply where no length is set."""


@dataclass(frozen=True)
class Pending:
    """A file on its way into a question; `document` is None while it is being read, `of` its pages if that is known."""

    path: Path
    ticket: int
    done: int = 0
    of: int = 0
    document: Document | None = None
    tokens: int = 0
    counted: bool = False


class Attachments(QObject):
    """`notice(Notice)` for a file that cannot be read and for files that do not fit."""

    notice = Signal(object)

    def __init__(self, window: MainWindow, worker: Worker, chat: ChatModel, reply: Callable[[], int | None]) -> None:
        super().__init__(window)
        self._window, self._worker, self._chat, self._reply = window, worker, chat, reply
        self._pending: list[Pending] = []
        self._counting: dict[int, int] = {}
        """By the ticket of a count: the ticket of the file."""
        self._reader = TaskThread("documents")
        self._reader.told.connect(self._on_progress)
        self._reader.done.connect(self._on_read)
        self._reader.failed.connect(self._on_unreadable)
        worker.told.connect(self._on_told)

    @Slot(object)
    def add(self, paths: Sequence[Path]) -> None:
        """Reads files, one after the other."""
        for path in paths:
            self._pending.append(Pending(path, self._reader.run(partial(_read, path))))
        self._show()
        self._window.composer.take_focus()

    @Slot(int)
    def remove(self, place: int) -> None:
        """Takes a file away, also one that is still being read."""
        self._reader.stop(self._pending.pop(place).ticket)
        self._show()
        self._window.composer.take_focus()

    @Slot(int)
    def open(self, place: int) -> None:
        """Shows the text of a file that was read."""
        document = self._pending[place].document
        if document is not None:
            self.show_document(document)

    @Slot(object)
    def show_document(self, document: Document) -> None:
        """Shows a document's text as the model reads it."""
        DocumentDialog(self._window.theme, document.name, as_read(document), said(document.note), self._window).open()

    def ready(self, text: str, state: State) -> tuple[Document, ...] | None:
        """The documents for a question; None, and a notice, while they are being read or if they do not fit."""
        documents = tuple(each.document for each in self._pending if each.document is not None)
        if len(documents) < len(self._pending):
            self.notice.emit(notices.still_reading())
            return None
        needed = sum(each.tokens for each in self._pending)
        if documents and state.model is not None:
            room = max(0, state.model.context - self._used(state) - tokens_about(text) - self._reply_tokens())
            if needed > room:
                self.notice.emit(notices.files_too_long(needed, room, state.model.context))
                return None
        return documents

    def clear(self) -> None:
        """Takes all away: the question was asked."""
        for each in self._pending:
            self._reader.stop(each.ticket)
        self._pending.clear()
        self._show()

    def close(self) -> None:
        """Stops reading."""
        self._reader.close()

    def _used(self, state: State) -> int:
        """The tokens of the conversation so far: the engine's figure, else a guess."""
        if state.stats is not None and state.stats.context_used:
            return state.stats.context_used
        path = self._chat.conversation.path()
        messages = self._chat.conversation.messages(path[-1].id) if path else ()
        return sum(tokens_about(message.content) for message in messages)

    def _reply_tokens(self) -> int:
        return min(self._reply() or REPLY_TOKENS, REPLY_TOKENS)

    @Slot(int, object)
    def _on_progress(self, ticket: int, far: tuple[int, int]) -> None:
        place = self._place(ticket)
        if place is not None:
            self._pending[place] = replace(self._pending[place], done=far[0], of=far[1])
            self._show()

    @Slot(int, object)
    def _on_read(self, ticket: int, document: Document | None) -> None:
        place = self._place(ticket)
        if place is None or document is None:
            return
        text = as_read(document)
        self._pending[place] = replace(self._pending[place], document=document, tokens=tokens_about(text))
        self._counting[self._worker.count(Request((Message("user", text),)))] = ticket
        self._show()

    @Slot(int, object)
    def _on_unreadable(self, ticket: int, error: HeteGenError) -> None:
        place = self._place(ticket)
        if place is None:
            return
        if isinstance(error, DocumentLocked):
            self._ask_password(ticket, self._pending[place].path.name, said(error.why))
            return
        del self._pending[place]
        self._show()
        self.notice.emit(notices.for_error(error))

    def _ask_password(self, ticket: int, name: str, why: str) -> None:
        dialog = PasswordDialog(name, why, self._window)
        dialog.textValueSelected.connect(partial(self._unlock, ticket))
        dialog.rejected.connect(partial(self._give_up, ticket))
        dialog.open()

    def _unlock(self, ticket: int, password: str) -> None:
        place = self._place(ticket)
        if place is not None:
            path = self._pending[place].path
            self._pending[place] = Pending(path, self._reader.run(partial(_read, path, password=password)))

    def _give_up(self, ticket: int) -> None:
        place = self._place(ticket)
        if place is not None:
            self.remove(place)

    @Slot(int, object)
    def _on_told(self, ticket: int, event: object) -> None:
        """A count by the model's own tokenizer; without a model the guess stays."""
        place = self._place(self._counting.pop(ticket, 0))
        if place is not None and isinstance(event, Counted):
            self._pending[place] = replace(self._pending[place], tokens=event.tokens, counted=True)
            self._show()

    def _place(self, ticket: int) -> int | None:
        return next((place for place, each in enumerate(self._pending) if each.ticket == ticket), None)

    def _show(self) -> None:
        chips = [
            words_of(each.path.name, each.document, each.tokens, counted=each.counted)
            if each.document is not None
            else words_while_reading(each.path.name, each.done, each.of)
            for each in self._pending
        ]
        self._window.chips.show_chips(chips)


def _read(path: Path, stop: Stop, tell: Tell, password: str = "") -> Document | None:
    return read_document(path, stop=stop, progress=lambda done, of: tell((done, of)), password=password)
