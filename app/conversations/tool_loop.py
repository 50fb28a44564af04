"""The tool calls of a reply: collected while it streams, then run one after another with the user's permission.

Once every call has its result, the reply goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

from PySide6.QtCore import QObject, Signal, Slot

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Conversation, Turn
from app.tools.toolbox import Toolbox, arguments_of
from core.errors import BadRequest
from core.events import Tool, ToolCall, ToolCallPiece
from core.tools.book import Permission
from core.tools.results import LONGEST
from core.tools.server import ToolResult

MOST_ROUNDS = 16
"""Most rounds of calls after one question; then the model has to answer without tools."""
MOST_CALLS = 16
"""Most calls in one reply."""
CHARACTERS_PER_TOKEN = 2
"""Characters of a result per token of context, so that it fills about half of the context."""
DENIED = "The user did not allow this call."
STOPPED = "The user stopped this call."


class CallCollector:
    """Joins the streamed pieces of a reply's calls."""

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._at: dict[int, int] = {}

    def push(self, piece: ToolCallPiece) -> None:
        """Take the next piece. A new id begins a new call, because some servers give every call the index 0."""
        place = self._at.get(piece.index)
        if place is None or (piece.id and piece.id != self._calls[place].id):
            place = self._at[piece.index] = len(self._calls)
            self._calls.append(ToolCall(piece.id or f"call_{uuid4().hex[:12]}", "", ""))
        call = self._calls[place]
        name = call.name or piece.name
        self._calls[place] = replace(call, name=name, arguments=call.arguments + piece.arguments)

    def calls(self) -> tuple[ToolCall, ...]:
        """Return the complete calls."""
        return tuple(call for call in self._calls if call.name)[:MOST_CALLS]


class ToolLoop(QObject):
    """Runs a reply's calls in order, asking the user where needed.

    Signals: `asks` when a call waits for the user; `finished(Turn)` with the last call's turn, after which the reply
    goes on.
    """

    asks = Signal()
    finished = Signal(object)

    def __init__(self, chat: ChatModel, toolbox: Toolbox, context: Callable[[], int]) -> None:
        """`context`: tokens of the loaded model's context, 0 = unknown."""
        super().__init__()
        self._chat, self._toolbox, self._context = chat, toolbox, context
        self._turns: list[Turn] = []
        toolbox.answered.connect(self._on_answered)

    @property
    def runs(self) -> bool:
        """Whether calls are running or waiting."""
        return bool(self._turns)

    def offered(self, conversation: Conversation, last: Turn) -> tuple[Tool, ...]:
        """Return the tools for the reply to `last`; none after too many rounds of calls."""
        rounds, turn = 0, last
        while turn.role != "user" and turn.parent is not None:
            rounds += turn.role == "assistant"
            turn = conversation.turn(turn.parent)
        return self._toolbox.offered() if rounds < MOST_ROUNDS else ()

    def begin(self, conversation: Conversation, reply: Turn, calls: tuple[ToolCall, ...]) -> None:
        """Start the calls of a conversation's reply."""
        parent = reply.id
        for call in calls:
            # Servers may use an id twice in a conversation: make it unique.
            own = replace(call, id=f"{call.id[:40]}_{uuid4().hex[:6]}")
            turn = self._chat.add(Turn("tool", end="asking", parent=parent, call=own), conversation)
            self._turns.append(turn)
            parent = turn.id
        for turn in self._turns:
            self._check(turn)
        self._next()

    def decide(self, id: str, decision: str) -> None:
        """Apply the user's decision on a call: "once", "always" or "never"."""
        turn = next((turn for turn in self._turns if turn.id == id and turn.end == "asking"), None)
        if turn is None or turn.call is None:
            return
        if decision in ("always", "never"):
            self._keep(turn.call, "always" if decision == "always" else "never")
        if decision == "never":
            self._end(turn, "denied", DENIED)
        else:
            self._run(turn)
        if self._turns and self._turns[0].open is False:
            self._next()

    def stop(self) -> None:
        """Cancel waiting and running calls; the reply does not go on."""
        turns, self._turns = self._turns, []
        for turn in turns:
            if turn.open and turn.call is not None:
                self._toolbox.cancel(turn.call.id)
                self._end(turn, "stopped", STOPPED)

    def _keep(self, call: ToolCall, permission: Permission) -> None:
        try:
            offer = self._toolbox.offer(call.name)
        except BadRequest:
            return
        self._toolbox.permit(offer.server, offer.name, permission)

    def _next(self) -> None:
        """Run the calls up to the first that waits for the user; once all have ended, let the reply go on."""
        for turn in self._turns:
            if turn.end == "asking":
                self._consider(turn)
            if turn.open:
                return
        if self._turns:
            last, self._turns = self._turns[-1], []
            self.finished.emit(last)

    def _check(self, turn: Turn) -> None:
        """Fail a call that cannot be made: the user is not asked about it, and the model is told why."""
        assert turn.call is not None
        try:
            self._toolbox.offer(turn.call.name)
            arguments_of(turn.call)
        except BadRequest as error:
            self._end(turn, "failed", str(error))

    def _consider(self, turn: Turn) -> None:
        assert turn.call is not None
        try:
            permission = self._toolbox.permission(turn.call.name)
        except BadRequest as error:
            # Its server has ended meanwhile.
            self._end(turn, "failed", str(error))
            return
        if permission == "always":
            self._run(turn)
        elif permission == "never":
            self._end(turn, "denied", DENIED)
        else:
            self.asks.emit()

    def _run(self, turn: Turn) -> None:
        assert turn.call is not None
        try:
            self._toolbox.call(turn.call, self._longest())
        except BadRequest as error:
            self._end(turn, "failed", str(error))
        else:
            self._end(turn, "running", "")

    def _longest(self) -> int:
        return min(LONGEST, self._context() * CHARACTERS_PER_TOKEN or LONGEST)

    def _end(self, turn: Turn, end: str, content: str) -> None:
        turn.end, turn.content = end, content
        self._chat.changed(turn)

    @Slot(str, object)
    def _on_answered(self, id: str, result: ToolResult) -> None:
        turn = next((turn for turn in self._turns if turn.call is not None and turn.call.id == id), None)
        if turn is not None:
            self._end(turn, "failed" if result.failed else "done", result.text or "(no output)")
            self._next()
