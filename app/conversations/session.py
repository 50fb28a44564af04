"""What the user asks for: a question, another version, an edit, another model. `replies` has questions answered.

Stands between the views and the worker, and knows no widgets. `model_session` decides which model answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import COUNTS, PARTS, Conversation, Turn
from app.conversations.model_session import ModelSession, Wished
from app.conversations.passages import FindParts, no_parts
from app.conversations.replies import Replies
from app.engine.app_state import State
from app.engine.worker import Worker
from app.notices import notices
from app.tools.toolbox import Toolbox
from core.documents.document import Document
from core.events import LoadOptions, Sampling
from core.files import without_halves


class Session(QObject):
    """Carries out the user's commands on the open conversation and its model.

    Signals: `changed(State)`; `notice(Notice)`; `taken_back(Turn)` for a question that waited in the open conversation.
    """

    changed = Signal(object)
    notice = Signal(object)
    taken_back = Signal(object)

    def __init__(
        self,
        worker: Worker,
        chat: ChatModel,
        toolbox: Toolbox,
        sampling: Callable[[Conversation], Sampling] = lambda conversation: Sampling(),
        find_parts: FindParts = no_parts,
        keeps: Callable[[], bool] = bool,
    ) -> None:
        """`keeps`: whether KV caches of conversations are kept on disk."""
        super().__init__()
        self._worker, self._chat, self._find_parts = worker, chat, find_parts
        self.model = ModelSession(worker)
        self.replies = Replies(worker, chat, toolbox, self.model, sampling, keeps)
        self.model.changed.connect(self.changed)
        self.model.notice.connect(self.notice)
        self.model.checked.connect(self._on_checked)
        self.replies.notice.connect(self.notice)
        chat.opened.connect(self._on_opened)

    @property
    def state(self) -> State:
        """The state for the views."""
        return self.model.state

    @property
    def conversation(self) -> Conversation:
        """The open conversation."""
        return self._chat.conversation

    @property
    def answered(self) -> Conversation:
        """The conversation of the last question that was asked."""
        return self.replies.answered

    def load(self, source: str, options: LoadOptions) -> None:
        """Load another model, which answers waiting questions. A running reply goes on until it is known that the model
        can be loaded; it is then stopped, and kept."""
        if self.replies.runs:
            self.model.check(source, options)
        else:
            self.model.load(source, options)

    def load_wished(self, wished: Wished | State | None) -> None:
        """Load a model again: the one that was to be loaded last, or the one that was given up for it."""
        if wished is not None:
            self.load(wished.source, wished.options)

    @Slot(object)
    def _on_checked(self, wished: Wished) -> None:
        if self.replies.runs:
            self.replies.leave()
        self.model.load(wished.source, wished.options)

    def retry(self) -> None:
        """Write the reply that failed, else the last one, again, also of a conversation that is not shown."""
        conversation = self.replies.failed or self.answered
        if path := conversation.path():
            self._write_again(conversation, path[-1])

    @Slot()
    def stop(self) -> None:
        """Stop the reply of the conversation shown, or give up its waiting question; tell where else a reply runs."""
        if (question := self.replies.take_back(self.conversation.id)) is not None:
            self.taken_back.emit(question)
        elif self.state.elsewhere:
            self.notice.emit(notices.answers_elsewhere())
        else:
            self.replies.stop()

    def end(self) -> None:
        """Stop everything at the end of the program; what was said so far is kept."""
        self._worker.stop_all()
        self.replies.end()

    def submit(
        self,
        text: str,
        attached: tuple[Document, ...] = (),
        in_parts: Collection[str] = (),
        counts: Mapping[str, int] = MappingProxyType({}),
    ) -> bool:
        """Ask a new question at the end of the conversation, in place of its draft. False if it was not asked.

        `in_parts`: the digests of attached documents that do not fit; `counts`: the documents' tokens by digest, where
        they are known.
        """
        text = without_halves(text)
        if not (text.strip() or any(each.picture for each in attached)) or self.state.busy_here or not self._can_ask():
            return False
        rows = self._chat.rowCount()
        parent = self._chat.turn(rows - 1).id if rows else None
        asked = self._put(Turn("user", text.strip(), parent=parent, attached=attached), in_parts, counts)
        if asked:
            self._chat.drop_draft()
        return asked

    def regenerate(self, id: str) -> None:
        """Write another version of a reply; for a user's turn, of the reply to it."""
        self._write_again(self.conversation, self.conversation.turn(id))

    def edit(self, id: str, text: str) -> bool:
        """Add a changed version beside a turn; a user's turn is then answered. False if it was not accepted."""
        old, text = self.conversation.turn(id), without_halves(text.strip())
        if not text or text == old.content.strip():
            return False
        if self.state.busy_here:
            self.notice.emit(notices.reply_awaited())
            return False
        if old.role == "assistant":
            self._chat.add(Turn("assistant", text, end="edited", parent=old.parent))
            return True
        if not self._can_ask():
            return False
        before = self.conversation.excerpts(id)
        in_parts = {each.document.digest for each in before if each.document in old.attached}
        question = Turn("user", text, parent=old.parent, attached=old.attached)
        return self._put(question, in_parts, old.counts)

    def go_on(self, id: str) -> None:
        """Continue a reply that ended early."""
        turn = self.conversation.turn(id)
        if turn.role != "assistant":
            return
        if self.state.elsewhere:
            self.notice.emit(notices.answers_elsewhere())
        elif self._can_ask() and not self.state.busy:
            self.replies.begin(self.conversation, turn)

    def _can_ask(self) -> bool:
        """Whether a question can be asked; the user is told why not."""
        if self.state.phase == "empty":
            self.notice.emit(notices.no_model())
        return self.state.phase != "empty"

    @Slot()
    def _on_opened(self) -> None:
        stats = self.state.stats if self.state.busy else None
        self.model.change(shown=self.conversation.id, begun=bool(self._chat.rowCount()), stats=stats)

    def _put(self, question: Turn, in_parts: Collection[str], counts: Mapping[str, int]) -> bool:
        """Ask a question together with its passages; False while they cannot be found yet."""
        parts = self._find_parts(question, in_parts)
        if parts is None:
            self.notice.emit(notices.still_reading())
            return False
        if parts:
            question.receipt[PARTS] = parts
        if counts:
            question.receipt[COUNTS] = dict(counts)
        self.replies.answer(self.conversation, self._chat.add(question))
        return True

    def _write_again(self, conversation: Conversation, turn: Turn) -> None:
        """Write another version of a reply; for a user's turn, of the reply to it."""
        asked = turn.id if turn.role == "user" else turn.parent
        if asked is not None and self._can_ask() and not self.state.busy_in(conversation.id):
            self.replies.answer(conversation, conversation.turn(asked))
