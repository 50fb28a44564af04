"""Replies: questions go to the engine one at a time, and what it tells is written into the chat and the `State`.

Questions of other conversations wait; so does one whose model is being loaded. Knows no commands of the user: see
`session`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import CALLED, Conversation, Turn
from app.conversations.model_session import ModelSession, failure_notice
from app.conversations.receipt import receipt
from app.conversations.tool_loop import CallCollector, ToolLoop
from app.conversations.waiting import Waiting
from app.engine.worker import Worker
from app.notices import notices
from app.tools.toolbox import Toolbox
from core.errors import HeteGenError
from core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Loaded,
    Piece,
    Prefill,
    Replanned,
    Request,
    Sampling,
    Stats,
    ToolCallPiece,
    Truncated,
)

log = logging.getLogger(__name__)


class Replies(QObject):
    """Has questions answered, one at a time.

    Signals: `notice(Notice)`; `finished(Turn)` once per finished reply.
    """

    notice = Signal(object)
    finished = Signal(object)

    def __init__(
        self,
        worker: Worker,
        chat: ChatModel,
        toolbox: Toolbox,
        model: ModelSession,
        sampling: Callable[[Conversation], Sampling],
        keeps: Callable[[], bool],
    ) -> None:
        """`keeps`: whether KV caches of conversations are kept on disk."""
        super().__init__()
        self._worker, self._chat, self._model, self._sampling, self._keeps = worker, chat, model, sampling, keeps
        self.tools = ToolLoop(chat, toolbox, lambda: model.state.model.context if model.state.model else 0)
        self.tools.finished.connect(self._on_tools_finished)
        self._calls = CallCollector()
        self._ticket = 0
        self.answered = Conversation()
        """The conversation of the last question that was asked."""
        self.failed: Conversation | None = None
        """The conversation of the last reply that failed."""
        self._waiting = Waiting(chat, model)
        self._asked: Turn | None = None
        """Its question that waits for the model, or the reply to be continued."""
        self._asked_with = Sampling()
        """The sampling of the last request; the settings may change while its reply is written."""
        model.refused.connect(self._ask_next)
        model.ready.connect(self._on_ready)
        model.ended.connect(self._on_load_ended)
        worker.told.connect(self._on_event)
        worker.failed.connect(self._on_failed)
        worker.done.connect(self._on_done)

    @property
    def runs(self) -> bool:
        """Whether a reply runs, as opposed to one that waits for its model."""
        return self._model.state.busy and self._asked is None

    def live(self, id: str) -> Conversation | None:
        """Return a conversation in which a reply runs or is awaited as it is now; the store may lag behind."""
        return self.answered if id == self.answered.id else self._waiting.conversation(id)

    def answer(self, conversation: Conversation, question: Turn) -> None:
        """Have a question answered, now or after what is being answered."""
        if self._model.state.occupied:
            self._waiting.put(conversation, question)
        else:
            self.begin(conversation, question)

    def begin(self, conversation: Conversation, last: Turn) -> None:
        """Have a question answered, or a reply continued, now or when the model is loaded."""
        self.answered = conversation
        self._model.change(answered=conversation.id)
        if last.role == "user" and last.end:
            last.end = ""
            self._chat.changed(last)
        self._model.wake()
        if self._model.state.phase == "loading":
            self._asked = last
            self._model.change(asked=True)
        else:
            self._send(last)

    def stop(self) -> None:
        """Stop the reply that runs, or give up the question that waits for its model."""
        if self.tools.runs:
            self.tools.stop()
            self._rest(self._model.state.stats)
        elif self._asked is None:
            # Clients of the local server keep their replies.
            if self._model.state.phase != "loading":
                self._worker.stop(self._ticket)
        else:
            self._give_up("stopped")
            self._model.change(asked=False)
            self._ask_next()

    def take_back(self, id: str) -> Turn | None:
        """Give up and return the question that waits in a conversation for the reply in another one."""
        return self._waiting.take_back(id)

    def forget(self, id: str) -> None:
        """Stop what runs or waits in a conversation that is being deleted."""
        self._waiting.take_back(id)
        if id != self.answered.id:
            return
        if was_busy := self._model.state.busy:
            self._worker.stop(self._ticket)
            self.leave()
            self._give_up("stopped")
        self.answered = Conversation()
        self._model.change(asked=False)
        if was_busy and self._model.state.phase != "loading":
            self._rest(None)
        elif was_busy:
            self._ask_next()

    def end(self) -> None:
        """End what runs and waits; what was said so far is kept."""
        self.tools.stop()
        self._give_up("stopped")
        self._waiting.take_all_back()
        self._finish("stopped", {})

    def leave(self) -> None:
        """Keep the running reply as it is and ignore the rest of it."""
        self.tools.stop()
        self._finish("stopped", {})
        self._ticket = 0

    def _ask_next(self) -> None:
        if not self._model.state.occupied and (waited := self._waiting.next()) is not None:
            self.begin(*waited)

    def _send(self, last: Turn) -> None:
        conversation, goes_on = self.answered, last.role == "assistant"
        messages = conversation.messages(last.id)
        self._chat.start_reply(last if goes_on else self._chat.add(Turn("assistant", parent=last.id), conversation))
        self._asked_with = self._sampling(conversation)
        self._calls = CallCollector()
        tools = () if goes_on else self.tools.offered(conversation, last)
        kept = conversation.id if self._keeps() else ""
        request = Request(messages, self._asked_with, continue_reply=goes_on, tools=tools, conversation=kept)
        self._ticket = self._worker.chat(request)
        self._model.change(phase="reading", prefill=None, stats=None)

    @Slot(int, object)
    def _on_event(self, ticket: int, event: Event) -> None:
        if ticket == self._ticket:
            self._on_chat_event(event)

    @Slot(object)
    def _on_ready(self, model: Loaded) -> None:
        asked, self._asked = self._asked, None
        self._model.change(asked=False)
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
                if self._model.state.phase == "reading":
                    self._model.change(phase="replying", prefill=None)
            case ToolCallPiece():
                self._calls.push(event)
            case Stats():
                self._model.change(stats=event)
            case Prefill():
                self._model.change(prefill=event)
            case Truncated(turns, _):
                if running := self._chat.running:
                    running.left_out = turns
            case Replanned():
                self._model.on_replanned(event)
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
        self._finish(CALLED if calls else reason, receipt(self._model.state.model, stats, self._asked_with))
        if calls and reply is not None:
            self._model.change(phase="calling", prefill=None, stats=stats)
            self.tools.begin(self.answered, reply, calls)
        else:
            self._rest(stats)

    def _fail(self, notice: notices.Notice) -> None:
        """End a reply that failed."""
        self.failed = self.answered
        self._finish("failed", {})
        self.notice.emit(notice)
        self._rest(self._model.state.stats)

    def _rest(self, stats: Stats | None) -> None:
        """End a reply with these figures, which are those of its conversation only, and ask what waited for it."""
        self._model.change(phase="ready", prefill=None, stats=None if self._model.state.elsewhere else stats)
        self._ask_next()

    @Slot(object)
    def _on_tools_finished(self, last: Turn) -> None:
        self.begin(self.answered, last)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket == self._ticket:
            self._fail(failure_notice(error))

    @Slot(int)
    def _on_done(self, ticket: int) -> None:
        # The engine said neither Finished nor Failed: do not leave the window waiting.
        if ticket == self._ticket and self._model.state.busy and not self.tools.runs:
            self._finish("stopped", {})
            self._rest(self._model.state.stats)

    def _finish(self, end: str, receipt: dict[str, object]) -> None:
        turn = self._chat.finish_reply(end, receipt)
        if turn is not None:
            self.finished.emit(turn)
