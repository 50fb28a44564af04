"""The conversations on this computer: stores the open one; opens, lists, searches, exports and imports the others.

Stands between the chat model, the store and the sidebar, and shows nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations import export
from app.conversations.chat_model import ChatModel
from app.conversations.conversation import DRAFT, WAITING, Conversation, Turn
from app.conversations.importing import Importing
from app.conversations.imports.reader import Imported
from app.conversations.saved_conversation import SavedConversation
from app.conversations.store import UNREAD, Store
from app.conversations.store_file import Report
from app.engine.task_thread import TaskThread
from app.notices import notices
from app.system import readings
from core.errors import HeteGenError
from core.files import write_whole

log = logging.getLogger(__name__)


class Library(QObject):
    """Keeper of the user's conversations.

    Signals: `listed(list[Entry])`; `found(list[Hit])`; `opening(Conversation, turn id)`; `notice(Notice)`;
    `withdrawn(Notice)` when a notice no longer applies.
    """

    listed = Signal(object)
    found = Signal(object)
    opening = Signal(object, str)
    notice = Signal(object)
    withdrawn = Signal(object)
    _reported = Signal(object)

    def __init__(
        self,
        path: Path,
        chat: ChatModel,
        system: Callable[[], str],
        live: Callable[[str], Conversation | None] = lambda id: None,
    ) -> None:
        """`live`: returns a conversation whose reply is still awaited or written, None for any other."""
        super().__init__()
        self._chat, self._system, self._live = chat, system, live
        # The store may report from its own thread; a queued signal brings the report here.
        self._reported.connect(self._on_report)
        self._early: list[notices.Notice] = []
        self._listed = False
        self._store: Store | None = Store(path, self._reported.emit, waits=True)
        self._exporting = TaskThread("export", runs_stopped=True)  # an export that was begun is not lost by quitting
        self._exporting.done.connect(self._on_written)
        self._exporting.failed.connect(self._on_not_written)
        self._importing = Importing(self._import)
        self._importing.began.connect(self._on_import_began)
        self._importing.ended.connect(self._on_imported)
        self._importing.failed.connect(self._on_import_failed)
        chat.added.connect(self._on_added)
        chat.saved.connect(self._on_saved)
        chat.removed.connect(self._on_removed)
        chat.chose.connect(self._on_chose)

    @Slot()
    def refresh(self) -> None:
        """List everything again, and post the notices that came before anybody listened."""
        self._listed = True
        for early in self._early:
            self.notice.emit(early)
        self._early.clear()
        self.listed.emit(self._store.entries() if self._store else [])

    def new(self) -> Conversation:
        """Create an empty conversation with the user's system prompt. It is stored with its first turn."""
        return Conversation(system=self._system())

    def latest(self) -> str:
        """Return the id of the conversation used last, "" if there is none."""
        entries = self._store.entries() if self._store else []
        return max(entries, key=lambda entry: entry.updated).id if entries else ""

    @Slot(str, str)
    def open(self, id: str, turn: str) -> None:
        """Open a conversation, optionally at a turn, which may be in a hidden version."""
        if self._store is None or (id == self._chat.conversation.id and not turn):
            return
        try:
            conversation = self._live(id) or self._load(self._store, id)
        except HeteGenError as error:
            self.notice.emit(notices.for_error(error))
            return
        if conversation.draft is not None and turn == conversation.draft.id:
            turn = ""  # its words are found, but are shown in the composer
        if turn:
            conversation.choose(turn)
        self.set_unread(id, unread=False)
        self.opening.emit(conversation, turn)

    def _load(self, store: Store, id: str) -> Conversation:
        """Load a conversation; what waited or ran in it ended with the program."""
        conversation = store.load(id)
        for each in conversation.turns():
            replied = conversation.has_reply(each.id)
            if each.end == DRAFT and conversation.draft is None and not replied:
                conversation.take_out(each.id)
            elif each.role == "user" and replied:
                each.end = ""
            elif each.end in ("", WAITING, DRAFT):
                each.end = "stopped"
        conversation.preset = str(store.entry(id).options.get("preset", ""))
        return conversation

    @Slot(str, str)
    def describe(self, system: str, preset: str) -> None:
        """Change the system prompt and sampling preset of the open conversation."""
        conversation = self._chat.conversation
        conversation.system, conversation.preset = system, preset
        if self._store is not None and conversation.turns():
            known = self._store.entry(conversation.id)
            conversation.title = known.title
            self._store.put(conversation, {**known.options, "preset": preset})

    @Slot(str, str)
    def rename(self, id: str, title: str) -> None:
        """Change a conversation's title."""
        if self._store:
            self._store.rename(id, title)
            self.refresh()

    @Slot(str, bool)
    def pin(self, id: str, pinned: bool) -> None:
        """Pin a conversation to the top of the list, or unpin it."""
        if self._store:
            self._store.pin(id, pinned)
            self.refresh()

    def set_unread(self, id: str, unread: bool) -> None:
        """Mark a conversation as one with a reply that has not been shown, or take the mark back."""
        if self._store is not None and (entry := self._store.entry(id)).unread != unread:
            self._store.set_options(id, {**_shared(entry.options), **({UNREAD: True} if unread else {})})
            self.refresh()

    @Slot(str)
    def delete(self, id: str) -> None:
        """Remove a conversation from the list; `undelete` restores it until `purge`."""
        if self._store:
            self._store.delete(id)
            readings.remove(id)
            self.refresh()
        if id == self._chat.conversation.id:
            self.opening.emit(self.new(), "")

    @Slot(str)
    def undelete(self, id: str) -> None:
        """Restore a deleted conversation."""
        if self._store:
            self._store.undelete(id)
            self.refresh()

    @Slot(str)
    def purge(self, id: str) -> None:
        """Overwrite on disk what was deleted more than a moment ago."""
        if self._store:
            self._store.purge(5.0)

    @Slot(str)
    def search(self, text: str) -> None:
        """Search titles and turns."""
        if self._store and text:
            self.found.emit(self._store.search(text))

    @property
    def unsaved(self) -> bool:
        """Whether changes wait in memory for disk space; they would be lost with the window."""
        if self._store is None:
            return False
        self._store.retry()
        return self._store.unsaved

    def title(self, id: str) -> str:
        """Return a conversation's title, "" if there is none."""
        entries = self._store.entries() if self._store else []
        return next((entry.title for entry in entries if entry.id == id), "")

    def export(self, id: str, form: str, path: Path) -> None:
        """Export one conversation, or all if `id` is "", beside the window; a notice tells the outcome."""
        store = self._store
        if store is not None:
            self._exporting.run(lambda stop, tell: _written(store, id, form, path))

    def write(self, id: str, form: str, path: Path) -> bool:
        """Export as `export` does, but wait for it; return whether it was written."""
        if self._store is None:
            return False
        outcome = _written(self._store, id, form, path)
        self.notice.emit(outcome)
        return outcome.tone != "error"

    def read(self, path: Path) -> None:
        """Import all conversations of a file, beside the window; a notice tells the outcome."""
        if self._store is not None:
            self._importing.read(path)

    def close(self) -> None:
        """Write what is left and close the store."""
        self._importing.close()
        self._exporting.close()
        if self._store is not None:
            self._store.purge()
            if not self._store.late:  # the engine may have stored a KV cache of a conversation deleted meanwhile
                readings.keep_only(entry.id for entry in self._store.entries())
            self._store.close()
            self._store = None

    def _import(self, saved: SavedConversation) -> None:
        store = self._store
        assert store is not None
        conversation, times = saved.conversation, saved.created
        began = min(times.values(), default=None)
        store.put(conversation, saved.options, began)
        for turn in conversation.turns():
            store.add(conversation.id, turn, times.get(turn.id, began))
        if path := conversation.path():
            store.choose(path[-1].id)
        if saved.pinned:
            store.pin(conversation.id, pinned=True)

    @Slot(int, object)
    def _on_written(self, ticket: int, outcome: notices.Notice) -> None:
        self.notice.emit(outcome)

    @Slot(int, object)
    def _on_not_written(self, ticket: int, error: HeteGenError) -> None:
        self.notice.emit(notices.for_error(error))

    @Slot(object)
    def _on_import_began(self, path: Path) -> None:
        self.notice.emit(notices.importing(path))

    @Slot(object, object)
    def _on_imported(self, path: Path, imported: Imported) -> None:
        self.withdrawn.emit(notices.importing(path))
        self.notice.emit(notices.imported(len(imported), imported.unreadable))
        self.refresh()

    @Slot(object, object)
    def _on_import_failed(self, path: Path, error: HeteGenError) -> None:
        self.withdrawn.emit(notices.importing(path))
        self.notice.emit(notices.for_error(error))

    @Slot(object, object)
    def _on_added(self, conversation: Conversation, turn: Turn) -> None:
        if self._store is None:
            return
        if turn.parent is None and (conversation.system or conversation.preset):
            self._store.put(conversation, {"preset": conversation.preset})
        self._store.add(conversation.id, turn)
        if turn.role == "user":
            self.refresh()

    @Slot(object)
    def _on_saved(self, turn: Turn) -> None:
        if self._store is not None:
            self._store.keep(turn)

    @Slot(object)
    def _on_removed(self, turn: Turn) -> None:
        if self._store is not None:
            self._store.remove(turn.id)

    @Slot(object)
    def _on_chose(self, turn: Turn) -> None:
        if self._store is not None:
            self._store.choose(turn.id)

    @Slot(object)
    def _on_report(self, report: Report) -> None:
        notice = notices.for_report(report.kind, report.what, report.why, report.next_step)
        if self._listed:
            self.notice.emit(notice)
        else:
            self._early.append(notice)
        if report.kind == "saved" and self._listed:
            self.refresh()  # the conversations of a file that could not be opened before


def _written(store: Store, id: str, form: str, path: Path) -> notices.Notice:
    """Write one conversation, or all if `id` is "", to a file; return the notice of the outcome."""
    ids = [id] if id else [entry.id for entry in store.entries()]
    saved = [_saved(store, each) for each in ids]
    text = export.to_json(saved) if form == "json" else export.to_markdown(saved[0])
    try:
        write_whole(path, text)
    except OSError as error:
        return notices.not_written(path, error)
    return notices.exported(path)


def _saved(store: Store, id: str) -> SavedConversation:
    entry = store.entry(id)
    return SavedConversation(store.load(id), entry.pinned, _shared(entry.options), store.created(id))


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a conversation's options without what says something about this window only."""
    return {name: value for name, value in options.items() if name != UNREAD}
