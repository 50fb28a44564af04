"""What is going on: which model is loaded, whether a reply runs. Wishes become commands, events become changes.

Stands between the views and the worker; knows no widgets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Conversation, Turn
from app.engine.app_state import GUIDE, Phase, State, name_of
from app.engine.task_thread import Defect
from app.engine.worker import Worker
from app.notices import notices
from core.documents.document import Document
from core.errors import HeteGenError
from core.events import (
    Event,
    Failed,
    Finished,
    Loaded,
    Loading,
    LoadOptions,
    Piece,
    Prefill,
    Replanned,
    Request,
    Sampling,
    Stats,
    Truncated,
)
from core.files import without_halves
from core.sentence import pack

log = logging.getLogger(__name__)


class Session(QObject):
    """Signals: `changed(State)`; `notice(Notice)`; `finished(Turn)` once per finished reply."""

    changed = Signal(object)
    notice = Signal(object)
    finished = Signal(object)

    def __init__(self, worker: Worker, chat: ChatModel, sampling: Callable[[], Sampling] = Sampling) -> None:
        super().__init__()
        self.state = State()
        self._worker = worker
        self._chat = chat
        self._sampling = sampling
        self._load_ticket = self._chat_ticket = self._plan_ticket = 0
        self._asked: Turn | None = None
        """The question that waits for the model, or the reply that is to be carried on."""
        self._asked_with = Sampling()
        """The sampling of the last request: the settings may change while its reply is written."""
        worker.told.connect(self._on_event)
        worker.failed.connect(self._on_failed)
        worker.done.connect(self._on_done)

    def load(self, source: str, options: LoadOptions) -> None:
        """Makes another model ready; a running reply is stopped and kept, a question that waits is answered by it."""
        if self._asked is None:
            self._leave_reply()
        self._load_ticket = self._worker.load(source, options)
        begun = State("loading", source, loading=Loading("start", 0), options=options)
        self._set(replace(begun, asked=self.state.asked, begun=self.state.begun))

    def reload(self) -> None:
        """Loads the last model again."""
        if self.state.source:
            self.load(self.state.source, self.state.options)

    def replan(self, options: LoadOptions) -> None:
        """Keeps the loaded model to other limits of memory: its weights move, after the reply that runs."""
        if self.state.model is not None:
            self._plan_ticket = self._worker.replan(options.vram, options.ram)
        self._set(replace(self.state, options=options))

    def after_sleep(self) -> None:
        """The computer was asleep: what it did to the graphics card is found out, and planned for."""
        model = self.state.model
        if model is not None and model.hardware is not None and model.hardware.gpus:
            self.replan(self.state.options)

    def rest(self) -> None:
        """Gives the model's memory back until the next question."""
        if self.state.phase == "ready":
            self._worker.unload()
            self._set(replace(self.state, phase="resting", model=None, stats=None))

    def wake(self) -> None:
        """Loads the model that rests."""
        if self.state.phase == "resting":
            self.reload()

    def retry(self) -> None:
        """Does again what failed last: the load if no model is there, else the last reply."""
        if self.state.model is None:
            self.reload()
        elif self._chat.rowCount():
            self.regenerate(self._chat.turn(self._chat.rowCount() - 1).id)

    def stop(self) -> None:
        """Ends the running reply, or gives up the one that waits for a model."""
        if self._asked is None:
            # Clients of the local server keep their replies.
            if self.state.phase != "loading":
                self._worker.stop(self._chat_ticket)
            return
        self._asked = None
        self._finish("stopped", {})
        self._set(replace(self.state, asked=False))

    def end(self) -> None:
        """The program ends: what was said so far is kept."""
        self._worker.stop_all()
        self._asked = None
        self._finish("stopped", {})

    def cancel_load(self) -> None:
        """Ends the running load."""
        if self.state.phase == "loading":
            self._worker.stop_all()

    def submit(self, text: str, attached: tuple[Document, ...] = ()) -> bool:
        """Asks a new question at the end of the conversation. False if nothing was asked."""
        text = without_halves(text)
        if not text.strip() or self.state.busy:
            return False
        if self.state.phase == "empty":
            self.notice.emit(notices.no_model())
            return False
        self.wake()
        rows = self._chat.rowCount()
        parent = self._chat.turn(rows - 1).id if rows else None
        self._answer(self._chat.add(Turn("user", text.strip(), parent=parent, attached=attached)))
        return True

    def regenerate(self, id: str) -> None:
        """Writes another version of a reply (of the reply to this turn, if it is the user's)."""
        turn = self._chat.conversation.turn(id)
        question = turn if turn.role == "user" else self._parent(turn)
        self.wake()
        if question is not None and self._free():
            self._answer(question)

    def edit(self, id: str, text: str) -> bool:
        """Puts a changed version beside a turn; the user's own is then answered. False if it was not taken."""
        old, text = self._chat.conversation.turn(id), without_halves(text.strip())
        if not text or text == old.content.strip():
            return False
        if self.state.busy:
            self.notice.emit(notices.reply_awaited())
            return False
        if old.role == "assistant":
            self._chat.add(Turn("assistant", text, end="edited", parent=old.parent))
            return True
        self.wake()
        if not self._free():
            return False
        self._answer(self._chat.add(Turn("user", text, parent=old.parent, attached=old.attached)))
        return True

    def go_on(self, id: str) -> None:
        """Carries on with a reply that ended early."""
        turn = self._chat.conversation.turn(id)
        if turn.role != "assistant":
            return
        self.wake()
        if self._free():
            self._chat.start_reply(turn)
            self._ask(turn)

    def show(self, conversation: Conversation) -> None:
        """Shows another conversation; a running reply is stopped and kept."""
        self.stop()
        self._leave_reply()
        self._chat.show(conversation)
        phase: Phase = "ready" if self.state.phase in ("reading", "replying") else self.state.phase
        begun = bool(self._chat.rowCount())
        self._set(replace(self.state, phase=phase, prefill=None, stats=None, begun=begun))

    def _free(self) -> bool:
        if self.state.phase == "empty":
            self.notice.emit(notices.no_model())
        return self.state.phase in ("ready", "loading") and not self.state.asked

    def _parent(self, turn: Turn) -> Turn | None:
        return self._chat.conversation.turn(turn.parent) if turn.parent else None

    def _answer(self, question: Turn) -> None:
        reply = self._chat.add(Turn("assistant", parent=question.id))
        self._chat.start_reply(reply)
        self._ask(question)

    def _ask(self, last: Turn) -> None:
        """Has a question answered, or a reply carried on, at once or when the model is there."""
        if self.state.phase == "loading":
            self._asked = last
            self._set(replace(self.state, asked=True))
        else:
            self._send(last)

    def _send(self, last: Turn) -> None:
        messages = self._chat.conversation.messages(last.id)
        self._asked_with = self._sampling()
        request = Request(messages, self._asked_with, continue_reply=last.role == "assistant")
        self._chat_ticket = self._worker.chat(request)
        self._set(replace(self.state, phase="reading", prefill=None, stats=None))

    def _set(self, state: State) -> None:
        self.state = state
        self.changed.emit(state)

    @Slot(int, object)
    def _on_event(self, ticket: int, event: Event) -> None:
        if ticket == self._load_ticket:
            self._on_load_event(event)
        elif ticket == self._chat_ticket:
            self._on_chat_event(event)
        elif ticket == self._plan_ticket:
            self._on_plan_event(event)

    def _on_load_event(self, event: Event) -> None:
        match event:
            case Loading():
                self._set(replace(self.state, loading=event))
            case Loaded():
                model = replace(event, name=GUIDE if name_of(self.state.source) == GUIDE else event.name)
                self._set(replace(self.state, phase="ready", model=model, loading=None))
                self._after_load(model)
            case Finished():
                self._load_ended()
                self.notice.emit(notices.load_cancelled(name_of(self.state.source)))
            case Failed(error):
                log.warning("Loading failed: %s", error)
                self._load_ended()
                self.notice.emit(notices.for_error(error))
            case _:
                pass

    def _after_load(self, model: Loaded) -> None:
        asked, self._asked = self._asked, None
        self._set(replace(self.state, asked=False))
        if not model.can_chat:
            self.notice.emit(notices.cannot_chat(model.name))
        if asked is not None:
            self._send(asked)

    def _load_ended(self) -> None:
        self._asked = None
        self._finish("failed", {})
        self._set(replace(self.state, phase="empty", loading=None, model=None, asked=False))

    def _on_chat_event(self, event: Event) -> None:
        match event:
            case Piece():
                self._chat.push(event)
                if self.state.phase == "reading":
                    self._set(replace(self.state, phase="replying", prefill=None))
            case Stats():
                self._set(replace(self.state, stats=event))
            case Prefill():
                self._set(replace(self.state, prefill=event))
            case Truncated(turns, _):
                if running := self._chat.running:
                    running.left_out = turns
            case Replanned():
                self._on_plan_event(event)
            case Finished(reason, stats):
                self._finish(reason, self._receipt(stats))
                self._set(replace(self.state, phase="ready", prefill=None, stats=stats))
            case Failed(error):
                log.warning("The reply failed: %s", error)
                self._finish("failed", {})
                self._set(replace(self.state, phase="ready", prefill=None))
                self.notice.emit(notices.for_error(error))
            case _:
                pass

    def _on_plan_event(self, event: Event) -> None:
        match event:
            case Replanned(reason, plan):
                model = self.state.model
                if plan is not None and model is not None:
                    self._set(replace(self.state, model=replace(model, plan=plan)))
                    if model.plan is not None and model.plan.linears == plan.linears:
                        return
                self.notice.emit(notices.replanned(reason))
            case Failed(error):
                log.warning("Planning anew failed: %s", error)
                self.notice.emit(notices.for_error(error))
            case _:
                pass

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        if ticket not in (self._load_ticket, self._chat_ticket, self._plan_ticket):
            return
        if ticket == self._load_ticket:
            self._load_ended()
        elif ticket == self._chat_ticket:
            self._finish("failed", {})
            self._set(replace(self.state, phase="ready", prefill=None))
        self.notice.emit(notices.for_defect(error.details) if isinstance(error, Defect) else notices.for_error(error))

    @Slot(int)
    def _on_done(self, ticket: int) -> None:
        # A reply whose engine said neither Finished nor Failed must not leave the window waiting.
        if ticket == self._chat_ticket and self.state.busy:
            self._finish("stopped", {})
            self._set(replace(self.state, phase="ready", prefill=None))

    def _leave_reply(self) -> None:
        """What is still to come of the running reply goes nowhere."""
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
