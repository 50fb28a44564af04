"""The files attached to the next question: read, counted, shown as chips, and handed over with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtGui import QImage

from app.controllers.long_documents import Larger, LongDocuments, larger_context
from app.conversations.attached import as_read, tokens_about
from app.conversations.session import Session
from app.engine.app_state import State
from app.engine.task_thread import TaskThread, Tell
from app.engine.worker import Worker
from app.i18n.translator import said, tr
from app.notices import notices
from app.views.chat.chip_words import words_of, words_while_reading
from app.views.chat.document_dialog import DocumentDialog, PasswordDialog
from app.views.chat.pictures import PictureDialog, as_png
from app.views.frame.window import MainWindow
from core.documents.document import Document, picture_document
from core.documents.reader import read_document
from core.errors import DocumentLocked, HeteGenError
from core.events import Counted, Message, Request, Stop
from core.generation.context_window import context_for, room_for_prompt

QUESTION_TOKENS = 512
"""Reserved for the question when a larger context is offered."""


@dataclass(frozen=True)
class Pending:
    """A file attached to the next question.

    `document` is None while it is read; `done` of `of` pages are read (0 = unknown).
    """

    path: Path
    ticket: int
    done: int = 0
    of: int = 0
    document: Document | None = None
    tokens: int = 0
    counted: bool = False


@dataclass(frozen=True)
class Ready:
    """The documents for a question, the digests of those that do not fit and are read in parts, and the tokens of those
    that the model's tokenizer has counted, by digest."""

    documents: tuple[Document, ...]
    in_parts: frozenset[str]
    counts: Mapping[str, int]


class Attachments(QObject):
    """Reads and counts attached files in the background and shows them as chips.

    Signals: `notice(Notice)` if a file cannot be read or seen or files do not fit; `withdrawn(Notice)` when that notice
    no longer applies; `load_wished(LoadOptions)` to load the model with a larger context.
    """

    notice = Signal(object)
    withdrawn = Signal(object)
    load_wished = Signal(object)

    def __init__(
        self,
        window: MainWindow,
        worker: Worker,
        session: Session,
        long: LongDocuments,
        reply: Callable[[], int | None],
    ) -> None:
        super().__init__(window)
        self._window, self._worker, self._session, self._long, self._reply = window, worker, session, long, reply
        self.larger: Larger | None = None
        """The larger context that was offered."""
        self._told: notices.Notice | None = None
        """The current notice that files are too long."""
        self._blind: notices.Notice | None = None
        """The current notice that the model cannot see pictures."""
        self._refused: list[notices.Notice] = []
        """The notices of files that could not be read, since the last question."""
        self.pending: list[Pending] = []
        """The files of the next question."""
        self._model = self._conversation = ""
        """The model and conversation that the files were judged for."""
        self._counting: dict[int, int] = {}
        """Maps the ticket of a token count to the ticket of its file."""
        self._reader = TaskThread("documents")
        self._reader.told.connect(self._on_progress)
        self._reader.done.connect(self._on_read)
        self._reader.failed.connect(self._on_unreadable)
        worker.told.connect(self._on_told)
        session.changed.connect(self._on_state)

    @Slot(object)
    def add(self, paths: Sequence[Path]) -> None:
        """Read files, one after another."""
        for path in paths:
            self.pending.append(Pending(path, self._reader.run(partial(_read, path))))
        self._show()
        self._window.composer.take_focus()

    def attach_again(self, documents: Sequence[Document]) -> None:
        """Attach the documents of a question that was taken back."""
        for each in documents:
            self.pending.append(Pending(Path(each.name), self._reader.run(partial(_known, each))))
        self._show()

    @Slot(int)
    def remove(self, place: int) -> None:
        """Remove a file, even while it is being read."""
        self._reader.stop(self.pending.pop(place).ticket)
        if not self.in_parts():
            self._take_back()
        if not any(each.document is not None and each.document.picture for each in self.pending):
            self._see_again()
        self._show()
        self._window.composer.take_focus()

    @Slot(int)
    def open(self, place: int) -> None:
        """Show the text of a file that has been read."""
        document = self.pending[place].document
        if document is not None:
            self.show_document(document)

    @Slot(object)
    def show_document(self, document: Document) -> None:
        """Show a picture, or a document's text as the model reads it."""
        if document.picture:
            PictureDialog(self._window.theme, document.name, document.picture, self._window).open()
            return
        DocumentDialog(self._window.theme, document.name, as_read(document), said(document.note), self._window).open()

    def ready(self, text: str) -> Ready | None:
        """Return the documents for a question, or None after a notice if they cannot be asked about yet."""
        documents = tuple(each.document for each in self.pending if each.document is not None)
        if self._says_that_it_is_blind(documents):
            return None
        in_parts = self.in_parts(text)
        late = [each for each in documents if each.digest in in_parts and not self._long.is_ready(each)]
        if len(documents) < len(self.pending) or late:
            self._long.prepare(late)
            self.notice.emit(notices.still_reading())
            return None
        counts = {each.document.digest: each.tokens for each in self.pending if each.document and each.counted}
        return Ready(documents, in_parts, counts)

    @Slot(object)
    def show_picture(self, image: QImage) -> None:
        """Attach a picture that is not a file, such as one from the clipboard."""
        name = tr("Pasted picture")
        self.pending.append(Pending(Path(name), self._reader.run(partial(_pasted, name, image))))
        self._show()

    def _says_that_it_is_blind(self, documents: Sequence[Document]) -> bool:
        model = self._session.state.model
        blind = model is not None and not model.sees and any(each.picture for each in documents)
        if model is not None and blind:
            self._blind = notices.cannot_see(model.name)
            self.notice.emit(self._blind)
        return blind

    def _see_again(self) -> None:
        """Withdraw the notice that the model cannot see pictures."""
        if self._blind is not None:
            self.withdrawn.emit(self._blind)
            self._blind = None

    @Slot()
    def enlarge(self) -> None:
        """Load the model with the context that was offered."""
        if self.larger is not None:
            self.load_wished.emit(self.larger.options)

    def clear(self) -> None:
        """Remove all files once the question has been asked."""
        for each in self.pending:
            self._reader.stop(each.ticket)
        self.pending.clear()
        self._take_back()
        self._see_again()
        for notice in self._refused:
            self.withdrawn.emit(notice)
        self._refused.clear()
        self._show()

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def in_parts(self, text: str = "") -> frozenset[str]:
        """Return the digests of the files that do not fit. Shorter files are kept whole first."""
        room, found = self._room(text), set()
        for each in sorted((each for each in self.pending if each.document is not None), key=lambda one: one.tokens):
            room -= each.tokens
            if room < 0 and each.document is not None and not each.document.picture:
                found.add(each.document.digest)
        return frozenset(found)

    def _room(self, text: str) -> int:
        """Tokens left for files; unlimited if the context is unknown, as with some remote models."""
        model = self._session.state.model
        if model is None or not model.context:
            return sys.maxsize
        return max(0, room_for_prompt(model.context, self._reply()) - self._used() - tokens_about(text))

    def _offer(self) -> None:
        """Tell the user that files are too long, and offer the context that would hold them."""
        state, in_parts = self._session.state, self.in_parts()
        documents = [each.document for each in self.pending if each.document is not None]
        self._long.prepare(each for each in documents if each.digest in in_parts)
        self._take_back()
        if not in_parts or state.model is None:
            return
        needed = sum(each.tokens for each in self.pending)
        room = self._room("")
        self.larger = larger_context(state, context_for(needed + self._used() + QUESTION_TOKENS))
        cost = self.larger.cost if self.larger is not None else None
        self._told = notices.files_too_long(needed, room, cost)
        self.notice.emit(self._told)

    def _take_back(self) -> None:
        """Withdraw the notice that files are too long."""
        if self._told is not None:
            self.withdrawn.emit(self._told)
            self._told = None

    def _used(self) -> int:
        """Tokens of the conversation so far: the engine's figure, otherwise an estimate."""
        state = self._session.state
        if state.stats is not None and state.stats.context_used and not state.elsewhere:
            return state.stats.context_used
        return sum(tokens_about(message.content) for message in self._session.conversation.so_far())

    @Slot(object)
    def _on_state(self, state: State) -> None:
        """Judge the files again: another model counts differently, and another conversation leaves other room."""
        model = f"{state.model.name} {state.model.context}" if state.model else ""
        before = self._model, self._conversation
        self._model, self._conversation = model, self._session.conversation.id
        if model and model != before[0]:
            self._see_again()
            for each in self.pending:
                if each.document is not None:
                    self._counted(each, each.document)
        if self.pending and before != (self._model, self._conversation):
            self._offer()
            self._show()

    @Slot(int, object)
    def _on_progress(self, ticket: int, far: tuple[int, int]) -> None:
        place = self._place(ticket)
        if place is not None:
            self.pending[place] = replace(self.pending[place], done=far[0], of=far[1])
            self._show()

    @Slot(int, object)
    def _on_read(self, ticket: int, read: Read | None) -> None:
        place = self._place(ticket)
        if place is None or read is None:
            return
        if read.document in (each.document for each in self.pending):
            self.remove(place)  # the same file twice
            return
        self.pending[place] = replace(self.pending[place], document=read.document, tokens=read.tokens)
        self._counted(self.pending[place], read.document)

    def _counted(self, pending: Pending, document: Document) -> None:
        """Have the model's own tokenizer count the document, unless it is a picture that the model cannot see."""
        if not self._says_that_it_is_blind([document]):
            pictures = (document.picture,) if document.picture else ()
            asked = Request((Message("user", as_read(document), pictures=pictures),))
            self._counting[self._worker.count(asked)] = pending.ticket
        self._show()

    @Slot(int, object)
    def _on_unreadable(self, ticket: int, error: HeteGenError) -> None:
        place = self._place(ticket)
        if place is None:
            return
        if isinstance(error, DocumentLocked):
            self._ask_password(ticket, self.pending[place].path.name, said(error.why))
            return
        del self.pending[place]
        self._show()
        self._refused.append(notices.for_error(error))
        self.notice.emit(self._refused[-1])

    def _ask_password(self, ticket: int, name: str, why: str) -> None:
        dialog = PasswordDialog(name, why, self._window)
        dialog.textValueSelected.connect(partial(self._unlock, ticket))
        dialog.rejected.connect(partial(self._give_up, ticket))
        dialog.open()

    def _unlock(self, ticket: int, password: str) -> None:
        place = self._place(ticket)
        if place is not None:
            path = self.pending[place].path
            self.pending[place] = Pending(path, self._reader.run(partial(_read, path, password=password)))

    def _give_up(self, ticket: int) -> None:
        place = self._place(ticket)
        if place is not None:
            self.remove(place)

    @Slot(int, object)
    def _on_told(self, ticket: int, event: object) -> None:
        """Store the exact token count; without a model the estimate stays."""
        place = self._place(self._counting.pop(ticket, 0))
        if place is not None and isinstance(event, Counted):
            self.pending[place] = replace(self.pending[place], tokens=event.tokens, counted=True)
            self._offer()
            self._show()

    def _place(self, ticket: int) -> int | None:
        return next((place for place, each in enumerate(self.pending) if each.ticket == ticket), None)

    def _show(self) -> None:
        in_parts = self.in_parts()
        chips = [
            words_of(each.document, each.tokens, counted=each.counted, in_parts=each.document.digest in in_parts)
            if each.document is not None
            else words_while_reading(each.path.name, each.done, each.of)
            for each in self.pending
        ]
        self._window.chips.show_chips(chips)
        seen = [each.document is not None and bool(each.document.picture) for each in self.pending]
        self._window.composer.set_wordless(bool(seen) and all(seen))


@dataclass(frozen=True)
class Read:
    """A file's content, and the estimated tokens of the text that the model reads."""

    document: Document
    tokens: int


def _read(path: Path, stop: Stop, tell: Tell, password: str = "") -> Read | None:
    document = read_document(path, stop=stop, progress=lambda done, of: tell((done, of)), password=password)
    return None if document is None else Read(document, tokens_about(as_read(document)))


def _known(document: Document, stop: Stop, tell: Tell) -> Read:
    return Read(document, tokens_about(as_read(document)))


def _pasted(name: str, image: QImage, stop: Stop, tell: Tell) -> Read:
    """Encode a pasted picture, in the reader's thread because large pictures take a while."""
    return Read(picture_document(name, as_png(image)), 0)
