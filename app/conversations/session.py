"""Questions and replies: users' actions become worker commands; engine events change the chat and the `State`.

Stands between the views and the worker, and knows no widgets. `model_session` decides which model answers. One question
is answered at a time, in its conversation, whichever conversation is shown meanwhile; those of others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import CALLED, COUNTS, PARTS, Conversation, Turn
from app.conversations.model_session import ModelSession, Wished, failure_notice
from app.conversations.passages import FindParts, no_parts
from app.conversations.receipt import receipt
from app.conversations.tool_loop import CallCollector, ToolLoop
from app.conversations.waiting import Waiting
from app.engine.app_state import State
from app.engine.worker import Worker
from app.notices import notices
from app.tools.toolbox import Toolbox
from core.documents.document import Document
from core.errors import HeteGenError
from core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Loaded,
    LoadOptions,
    Piece,
    Prefill,
    Replanned,
    Request,
    Sampling,
    Stats,
    ToolCallPiece,
    Truncated,
)
from core.files import without_halves

log = logging.getLogger(__name__)


class Session(QObject):
    """Sends questions to the engine and writes the replies into the chat model.

    Signals: `changed(State)`; `notice(Notice)`; `finished(Turn)` once per finished reply.
    """

    changed = Signal(object)
    notice = Signal(object)
    finished = Signal(object)

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
        self._find_parts, self._keeps = find_parts, keeps
        self.model = ModelSession(worker)
        self.tools = ToolLoop(chat, toolbox, lambda: self.state.model.context if self.state.model else 0)
        self.tools.finished.connect(self._on_tools_finished)
        self._calls = CallCollector()
        self._worker = worker
        self._chat = chat
        self._sampling = sampling
        self._chat_ticket = 0
        self.answered = Conversation()
        """The conversation of the last question that was asked."""
        self._failed: Conversation | None = None
        """The conversation of the last reply that failed."""
        self._waiting = Waiting(chat, self.model)
        self._asked: Turn | None = None
        """Its question that waits for the model, or the reply to be continued."""
        self._asked_with = Sampling()
        """The sampling of the last request; the settings may change while its reply is written."""
        self.model.changed.connect(self.changed)
        self.model.notice.connect(self.notice)
        self.model.checked.connect(self._on_checked)
        self.model.refused.connect(self._ask_next)
        self.model.ready.connect(self._on_ready)
        self.model.ended.connect(self._on_load_ended)
        chat.opened.connect(self._on_opened)
        worker.told.connect(self._on_event)
        worker.failed.connect(self._on_failed)
        worker.done.connect(self._on_done)

    @property
    def state(self) -> State:
        """The state for the views."""
        return self.model.state

    def load(self, source: str, options: LoadOptions) -> None:
        """Load another model, which answers waiting questions. A running reply goes on until it is known that the model
        can be loaded; it is then stopped, and kept."""
        if self.state.busy and self._asked is None:
            self.model.check(source, options)
        else:
            self.model.load(source, options)

    def load_wished(self, wished: Wished | State | None) -> None:
        """Load a model again: the one that was to be loaded last, or the one that was given up for it."""
        if wished is not None:
            self.load(wished.source, wished.options)

    @Slot(object)
    def _on_checked(self, wished: Wished) -> None:
        if self._asked is None:
            self._leave_reply()
        self.model.load(wished.source, wished.options)

    def retry(self) -> None:
        """Write the reply that failed, else the last one, again, also of a conversation that is not shown."""
        conversation = self._failed or self.answered
        if path := conversation.path():
            self._write_again(conversation, path[-1])

    def live(self, id: str) -> Conversation | None:
        """Return a conversation in which a reply runs or is awaited as it is now; the store may lag behind."""
        return self.answered if id == self.answered.id else self._waiting.conversation(id)

    def stop(self) -> None:
        """Stop the reply of the conversation shown, or give up its waiting question; tell where else a reply runs."""
        if self.conversation.id in self.state.waiting:
            self._waiting.take_back(self.conversation.id)
        elif self.state.elsewhere:
            self.notice.emit(notices.answers_elsewhere())
        elif self.tools.runs:
            self.tools.stop()
            self._rest(self.state.stats)
        elif self._asked is None:
            # Clients of the local server keep their replies.
            if self.state.phase != "loading":
                self._worker.stop(self._chat_ticket)
        else:
            self._give_up("stopped")
            self.model.change(asked=False)
            self._ask_next()

    def forget(self, id: str) -> None:
        """Stop what runs or waits in a conversation that is being deleted."""
        self._waiting.take_back(id)
        if id != self.answered.id:
            return
        if was_busy := self.state.busy:
            self._worker.stop(self._chat_ticket)
            self._leave_reply()
            self._give_up("stopped")
        self.answered = Conversation()
        self.model.change(asked=False)
        if was_busy and self.state.phase != "loading":
            self._rest(None)
        elif was_busy:
            self._ask_next()

    def end(self) -> None:
        """Stop everything at the end of the program; what was said so far is kept."""
        self._worker.stop_all()
        self.model.close()
        self.tools.stop()
        self._give_up("stopped")
        self._waiting.take_all_back()
        self._finish("stopped", {})

    def submit(
        self,
        text: str,
        attached: tuple[Document, ...] = (),
        in_parts: Collection[str] = (),
        counts: Mapping[str, int] = MappingProxyType({}),
    ) -> bool:
        """Ask a new question at the end of the conversation. False if it was not asked.

        `in_parts`: the digests of attached documents that do not fit; `counts`: the documents' tokens by digest, where
        they are known.
        """
        text = without_halves(text)
        if not (text.strip() or any(each.picture for each in attached)) or self.state.busy_here or not self._can_ask():
            return False
        rows = self._chat.rowCount()
        parent = self._chat.turn(rows - 1).id if rows else None
        return self._put(Turn("user", text.strip(), parent=parent, attached=attached), in_parts, counts)

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
            self._begin(self.conversation, turn)

    @property
    def conversation(self) -> Conversation:
        """The open conversation."""
        return self._chat.conversation

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
        self._answer(self.conversation, self._chat.add(question))
        return True

    def _write_again(self, conversation: Conversation, turn: Turn) -> None:
        """Write another version of a reply; for a user's turn, of the reply to it."""
        asked = turn.id if turn.role == "user" else turn.parent
        if asked is not None and self._can_ask() and not self.state.busy_in(conversation.id):
            self._answer(conversation, conversation.turn(asked))

    def _answer(self, conversation: Conversation, question: Turn) -> None:
        """Have a question answered, now or after what is being answered."""
        if self.state.occupied:
            self._waiting.put(conversation, question)
        else:
            self._begin(conversation, question)

    def _ask_next(self) -> None:
        if not self.state.occupied and (waited := self._waiting.next()) is not None:
            self._begin(*waited)

    def _begin(self, conversation: Conversation, last: Turn) -> None:
        """Have a question answered, or a reply continued, now or when the model is loaded."""
        self.answered = conversation
        self.model.change(answered=conversation.id)
        if last.role == "user" and last.end:
            last.end = ""
            self._chat.changed(last)
        self.model.wake()
        if self.state.phase == "loading":
            self._asked = last
            self.model.change(asked=True)
        else:
            self._send(last)

    def _send(self, last: Turn) -> None:
        conversation, goes_on = self.answered, last.role == "assistant"
        messages = conversation.messages(last.id)
        self._chat.start_reply(last if goes_on else self._chat.add(Turn("assistant", parent=last.id), conversation))
        self._asked_with = self._sampling(conversation)
        self._calls = CallCollector()
        tools = () if goes_on else self.tools.offered(conversation, last)
        kept = conversation.id if self._keeps() else ""
        request = Request(messages, self._asked_with, continue_reply=goes_on, tools=tools, conversation=kept)
        self._chat_ticket = self._worker.chat(request)
        self.model.change(phase="reading", prefill=None, stats=None)

    @Slot(int, object)
    def _on_event(self, ticket: int, event: Event) -> None:
        if ticket == self._chat_ticket:
            self._on_chat_event(event)

    @Slot(object)
    def _on_ready(self, model: Loaded) -> None:
        asked, self._asked = self._asked, None
        self.model.change(asked=False)
        if not model.can_chat:
            self.notice.emit(notices.cannot_chat(model.name))
        if asked is not None:
            self._send(asked)
        else:
            self._ask_next()

    @Slot()
    def _on_load_ended(self) -> None:
        self._give_up("failed")
        self._waiting.take_all_back()

    def _give_up(self, end: str) -> None:
        """Leave the question that waits for a model unanswered."""
        asked, self._asked = self._asked, None
        if asked is not None and asked.role == "user" and not self.answered.has_reply(asked.id):
            asked.end = end
            self._chat.changed(asked)

    def _on_chat_event(self, event: Event) -> None:
        match event:
            case Piece():
                self._chat.push(event)
                if self.state.phase == "reading":
                    self.model.change(phase="replying", prefill=None)
            case ToolCallPiece():
                self._calls.push(event)
            case Stats():
                self.model.change(stats=event)
            case Prefill():
                self.model.change(prefill=event)
            case Truncated(turns, _):
                if running := self._chat.running:
                    running.left_out = turns
            case Replanned():
                self.model.on_replanned(event)
            case Finished(reason, stats):
                self._on_finished(reason, stats)
            case Failed(error):
                log.warning("The reply failed: %s", error)
                self._fail(notices.for_error(error))
            case _:
                pass

    def _on_finished(self, reason: FinishReason, stats: Stats) -> None:
        """End the reply, or run its tools before it goes on. Calls of a reply that was cut short are not made."""
        reply, calls = self._chat.running, self._calls.calls() if reason == "stop" else ()
        self._finish(CALLED if calls else reason, receipt(self.state.model, stats, self._asked_with))
        if calls and reply is not None:
            self.model.change(phase="calling", prefill=None, stats=stats)
            self.tools.begin(self.answered, reply, calls)
        else:
            self._rest(stats)

    def _fail(self, notice: notices.Notice) -> None:
        """End a reply that failed."""
        self._failed = self.answered
        self._finish("failed", {})
        self.notice.emit(notice)
        self._rest(self.state.stats)

    def _rest(self, stats: Stats | None) -> None:
        """End a reply with these figures, which are those of its conversation only, and ask what waited for it."""
        self.model.change(phase="ready", prefill=None, stats=None if self.state.elsewhere else stats)
        self._ask_next()

    @Slot(object)
    def _on_tools_finished(self, last: Turn) -> None:
        self._begin(self.answered, last)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket == self._chat_ticket:
            self._fail(failure_notice(error))

    @Slot(int)
    def _on_done(self, ticket: int) -> None:
        # The engine said neither Finished nor Failed: do not leave the window waiting.
        if ticket == self._chat_ticket and self.state.busy and not self.tools.runs:
            self._finish("stopped", {})
            self._rest(self.state.stats)

    def _leave_reply(self) -> None:
        """Keep the running reply as it is and ignore the rest of it."""
        self.tools.stop()
        self._finish("stopped", {})
        self._chat_ticket = 0

    def _finish(self, end: str, receipt: dict[str, object]) -> None:
        turn = self._chat.finish_reply(end, receipt)
        if turn is not None:
            self.finished.emit(turn)
