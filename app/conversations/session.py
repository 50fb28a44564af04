"""Questions and replies: users' actions become worker commands; engine events change the chat and the `State`.

Stands between the views and the worker, and knows no widgets. `model_session` decides which model answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import CALLED, PARTS, Conversation, Turn
from app.conversations.model_session import ModelSession, failure_notice
from app.conversations.tool_loop import CallCollector, ToolLoop
from app.engine.app_state import Phase, State
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
    Message,
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
from core.sentence import pack

log = logging.getLogger(__name__)

FindParts = Callable[[Turn, Collection[str]], Mapping[str, object] | None]
"""Maps a question and the digests of its documents that do not fit to the passages that go with it.

None while the passages cannot be found yet.
"""


def no_parts(question: Turn, new: Collection[str]) -> Mapping[str, object]:
    """The FindParts of callers without long documents."""
    return {}


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
        sampling: Callable[[], Sampling] = Sampling,
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
        self._asked: Turn | None = None
        """The question that waits for the model, or the reply to be continued."""
        self._asked_with = Sampling()
        """The sampling of the last request; the settings may change while its reply is written."""
        self.model.changed.connect(self.changed)
        self.model.notice.connect(self.notice)
        self.model.ready.connect(self._on_ready)
        self.model.ended.connect(self._give_up)
        worker.told.connect(self._on_event)
        worker.failed.connect(self._on_failed)
        worker.done.connect(self._on_done)

    @property
    def state(self) -> State:
        """The state for the views."""
        return self.model.state

    def load(self, source: str, options: LoadOptions) -> None:
        """Load another model. A running reply is stopped and kept; a waiting question is answered by the new model."""
        if self._asked is None:
            self._leave_reply()
        self.model.load(source, options)

    def reload(self) -> None:
        """Try again to load the model that was to be loaded last."""
        if (wished := self.model.wished) is not None:
            self.load(wished.source, wished.options)

    def load_former(self) -> None:
        """Load the model that was given up for one that could not be loaded."""
        if (former := self.model.former) is not None:
            self.load(former.source, former.options)

    def retry(self) -> None:
        """Write the last reply again."""
        if self._chat.rowCount():
            self.regenerate(self._chat.turn(self._chat.rowCount() - 1).id)

    def stop(self) -> None:
        """Stop the running reply, or give up the question that waits for a model."""
        if self.tools.runs:
            self.tools.stop()
            self.model.change(phase="ready")
        elif self._asked is None:
            # Clients of the local server keep their replies.
            if self.state.phase != "loading":
                self._worker.stop(self._chat_ticket)
        else:
            self._asked = None
            self._finish("stopped", {})
            self.model.change(asked=False)

    def end(self) -> None:
        """Stop everything at the end of the program; what was said so far is kept."""
        self._worker.stop_all()
        self.tools.stop()
        self._asked = None
        self._finish("stopped", {})

    def submit(self, text: str, attached: tuple[Document, ...] = (), in_parts: Collection[str] = ()) -> bool:
        """Ask a new question at the end of the conversation. False if it was not asked.

        `in_parts`: the digests of attached documents that do not fit.
        """
        text = without_halves(text)
        if not (text.strip() or any(each.picture for each in attached)) or self.state.busy:
            return False
        if self.state.phase == "empty":
            self.notice.emit(notices.no_model())
            return False
        rows = self._chat.rowCount()
        parent = self._chat.turn(rows - 1).id if rows else None
        return self._put(Turn("user", text.strip(), parent=parent, attached=attached), in_parts)

    def regenerate(self, id: str) -> None:
        """Write another version of a reply; for a user's turn, of the reply to it."""
        turn = self._chat.conversation.turn(id)
        question = turn if turn.role == "user" else self._parent(turn)
        self.model.wake()
        if question is not None and self._free():
            self._answer(question)

    def edit(self, id: str, text: str) -> bool:
        """Add a changed version beside a turn; a user's turn is then answered. False if it was not accepted."""
        old, text = self._chat.conversation.turn(id), without_halves(text.strip())
        if not text or text == old.content.strip():
            return False
        if self.state.busy:
            self.notice.emit(notices.reply_awaited())
            return False
        if old.role == "assistant":
            self._chat.add(Turn("assistant", text, end="edited", parent=old.parent))
            return True
        self.model.wake()
        if not self._free():
            return False
        before = self._chat.conversation.excerpts(id)
        in_parts = {each.document.digest for each in before if each.document in old.attached}
        return self._put(Turn("user", text, parent=old.parent, attached=old.attached), in_parts)

    def go_on(self, id: str) -> None:
        """Continue a reply that ended early."""
        turn = self._chat.conversation.turn(id)
        if turn.role != "assistant":
            return
        self.model.wake()
        if self._free():
            self._chat.start_reply(turn)
            self._ask(turn)

    def show(self, conversation: Conversation) -> None:
        """Show another conversation. A running reply is stopped and kept."""
        self.stop()
        self._leave_reply()
        self._chat.show(conversation)
        phase: Phase = "ready" if self.state.phase in ("reading", "replying", "calling") else self.state.phase
        begun = bool(self._chat.rowCount())
        self.model.change(phase=phase, prefill=None, stats=None, begun=begun)

    @property
    def conversation(self) -> str:
        """The id of the open conversation."""
        return self._chat.conversation.id

    def so_far(self) -> tuple[Message, ...]:
        """Return the open conversation as the model was given it."""
        path = self._chat.conversation.path()
        return self._chat.conversation.messages(path[-1].id) if path else ()

    def _free(self) -> bool:
        if self.state.phase == "empty":
            self.notice.emit(notices.no_model())
        return self.state.phase in ("ready", "loading") and not self.state.asked

    def _put(self, question: Turn, in_parts: Collection[str]) -> bool:
        """Ask a question together with its passages; False while they cannot be found yet."""
        parts = self._find_parts(question, in_parts)
        if parts is None:
            self.notice.emit(notices.still_reading())
            return False
        if parts:
            question.receipt[PARTS] = parts
        self.model.wake()
        self._answer(self._chat.add(question))
        return True

    def _parent(self, turn: Turn) -> Turn | None:
        return self._chat.conversation.turn(turn.parent) if turn.parent else None

    def _answer(self, question: Turn) -> None:
        reply = self._chat.add(Turn("assistant", parent=question.id))
        self._chat.start_reply(reply)
        self._ask(question)

    def _ask(self, last: Turn) -> None:
        """Have a question answered, or a reply continued, now or when the model is loaded."""
        if self.state.phase == "loading":
            self._asked = last
            self.model.change(asked=True)
        else:
            self._send(last)

    def _send(self, last: Turn) -> None:
        messages = self._chat.conversation.messages(last.id)
        self._asked_with = self._sampling()
        self._calls = CallCollector()
        goes_on = last.role == "assistant"
        tools = () if goes_on else self.tools.offered(last)
        kept = self._chat.conversation.id if self._keeps() else ""
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

    @Slot()
    def _give_up(self) -> None:
        self._asked = None
        self._finish("failed", {})

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
                self._finish("failed", {})
                self.model.change(phase="ready", prefill=None)
                self.notice.emit(notices.for_error(error))
            case _:
                pass

    def _on_finished(self, reason: FinishReason, stats: Stats) -> None:
        """End the reply, or run its tools before it goes on. Calls of a reply that was cut short are not made."""
        reply, calls = self._chat.running, self._calls.calls() if reason == "stop" else ()
        self._finish(CALLED if calls else reason, self._receipt(stats))
        self.model.change(phase="calling" if calls and reply else "ready", prefill=None, stats=stats)
        if calls and reply is not None:
            self.tools.begin(reply, calls)

    @Slot(object)
    def _on_tools_finished(self, last: Turn) -> None:
        self._answer(last)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket == self._chat_ticket:
            self._finish("failed", {})
            self.model.change(phase="ready", prefill=None)
            self.notice.emit(failure_notice(error))

    @Slot(int)
    def _on_done(self, ticket: int) -> None:
        # The engine said neither Finished nor Failed: do not leave the window waiting.
        if ticket == self._chat_ticket and self.state.busy and not self.tools.runs:
            self._finish("stopped", {})
            self.model.change(phase="ready", prefill=None)

    def _leave_reply(self) -> None:
        """Keep the running reply as it is and ignore the rest of it."""
        self.tools.stop()
        self._finish("stopped", {})
        self._chat_ticket = 0

    def _finish(self, end: str, receipt: dict[str, object]) -> None:
        turn = self._chat.finish_reply(end, receipt)
        if turn is not None:
            self.finished.emit(turn)

    def _receipt(self, stats: Stats) -> dict[str, object]:
        model = self.state.model
        return {
            "model": model.name if model else "",
            "format": model.format if model else "",
            "plan": pack(model.plan_reason) if model else "",
            "tok_s": stats.mean_tok_s,
            "ttft_s": stats.ttft_s,
            "prompt_tok_s": stats.prompt_tok_s,
            "prompt_tokens": stats.prompt_tokens,
            "reused_tokens": stats.reused_tokens,
            "new_tokens": stats.new_tokens,
            "seed": stats.seed,
            "sampling": {name: value for name, value in vars(self._asked_with).items() if value not in (None, ())},
        }
