"""The open conversation as a Qt list model. Pieces of a running reply are merged on a short timer.

The running reply may belong to another conversation: then no row changes, and only the store hears of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, QPersistentModelIndex, Qt, QTimer, Signal

from app.conversations.conversation import Conversation, Turn
from app.settings.theme import FLUSH_MS
from core.events import Piece

TurnRole = Qt.ItemDataRole.UserRole + 1
VersionsRole = Qt.ItemDataRole.UserRole + 2
Index = QModelIndex | QPersistentModelIndex


class ChatModel(QAbstractListModel):
    """List model whose rows are the turns of the path shown. While a reply streams, each flush changes one row once.

    Signals: `opened` when another conversation is shown; `added(Conversation, Turn)` for a new turn and `saved(Turn)`
    for a changed one, `removed(Turn)` for one that is gone, for the store; `chose(Turn)` when another version is shown.
    """

    opened = Signal()
    added = Signal(object, object)
    saved = Signal(object)
    removed = Signal(object)
    chose = Signal(object)

    def __init__(self, parent: QObject | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(parent)
        self._clock = clock
        self.conversation = Conversation()
        self._path: list[Turn] = []
        self._running: Turn | None = None
        self._pending: list[Piece] = []
        self._thinking_since: float | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(FLUSH_MS)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self.flush)

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._path)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        if not index.isValid() or index.row() >= len(self._path):
            return None
        turn = self._path[index.row()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole):
            return turn.content
        if role == TurnRole:
            return turn
        return self.conversation.versions(turn.id) if role == VersionsRole else None

    def turn(self, row: int) -> Turn:
        """Return the turn in a row."""
        return self._path[row]

    def row(self, id: str) -> int:
        """Return the row of a turn. Raises StopIteration if it is not shown."""
        return next(row for row, turn in enumerate(self._path) if turn.id == id)

    @property
    def running(self) -> Turn | None:
        """The reply that is being written, or None."""
        return self._running

    def show(self, conversation: Conversation) -> None:
        """Show another conversation; the running reply goes on in its own."""
        self.flush()
        self.beginResetModel()
        self.conversation = conversation
        self._path = conversation.path()
        self.endResetModel()
        self.opened.emit()

    def add(self, turn: Turn, conversation: Conversation | None = None) -> Turn:
        """Add a turn to a conversation, None = the one shown; the path then runs through it."""
        conversation = conversation or self.conversation
        conversation.add(turn)
        if conversation is self.conversation:
            self._repath()
        self.added.emit(conversation, turn)
        if turn.parent is not None:
            self._follow(conversation.turn(turn.parent))
        return turn

    def take_out(self, question: Turn) -> None:
        """Make a question without a reply the draft of the conversation shown."""
        self.conversation.take_out(question.id)
        self._repath()
        self.saved.emit(question)

    def put_back(self, draft: Turn) -> None:
        """Make the draft an unanswered question of the conversation shown again."""
        self.conversation.draft, draft.end = None, "stopped"
        self.conversation.add(draft)
        self.conversation.choose(draft.id)
        self._repath()
        self.saved.emit(draft)

    def drop_draft(self) -> None:
        """Remove the draft of the conversation shown, if it has one."""
        draft, self.conversation.draft = self.conversation.draft, None
        if draft is not None:
            self.removed.emit(draft)

    def switch(self, id: str, step: int) -> None:
        """Show the version `step` places beside a turn."""
        chosen = self.conversation.switch(id, step)
        if chosen != id:
            self._repath()
            self.chose.emit(self.conversation.turn(chosen))

    def start_reply(self, turn: Turn) -> None:
        """Begin a reply: further pieces go to this turn, which was added before."""
        self._running = turn
        turn.end = ""
        self._thinking_since = None
        self._timer.start()

    def push(self, piece: Piece) -> None:
        """Queue a piece of the running reply until the next flush."""
        self._pending.append(piece)

    def flush(self) -> None:
        """Append the queued pieces to the running reply and report one change."""
        turn = self._running
        if turn is None or not self._pending:
            return
        pieces, self._pending = self._pending, []
        for piece in pieces:
            if piece.kind == "reasoning":
                self._thinking_since = self._thinking_since or self._clock()
                turn.reasoning += piece.text
            else:
                self._end_thinking(turn)
                turn.content += piece.text
        self.changed(turn)

    def finish_reply(self, end: str, receipt: dict[str, object]) -> Turn | None:
        """End the running reply: flush, set its end and figures, and return the turn."""
        self.flush()
        turn, self._running = self._running, None
        self._timer.stop()
        self._pending = []
        if turn is None:
            return None
        self._end_thinking(turn)
        # A reply that was to be continued, and was not, keeps its figures.
        turn.end, turn.receipt = end, receipt or turn.receipt
        self.changed(turn)
        return turn

    def changed(self, turn: Turn) -> None:
        """Report a changed turn to the views and the store."""
        for row in range(len(self._path) - 1, -1, -1):
            if self._path[row] is turn:
                self.dataChanged.emit(self.index(row), self.index(row))
                break
        self.saved.emit(turn)

    def _follow(self, before: Turn) -> None:
        """A question that was given up, and has a turn after it, is not to be asked again: what follows would go."""
        if before.role == "user" and before.end:
            before.end = ""
            self.changed(before)

    def _end_thinking(self, turn: Turn) -> None:
        if self._thinking_since is not None:
            turn.reasoning_s = (turn.reasoning_s or 0.0) + self._clock() - self._thinking_since
            self._thinking_since = None

    def _repath(self) -> None:
        """Move the rows to the conversation's path, changing only those after the fork."""
        path = self.conversation.path()
        same = 0
        while same < min(len(path), len(self._path)) and path[same] is self._path[same]:
            same += 1
        if same < len(self._path):
            self.beginRemoveRows(QModelIndex(), same, len(self._path) - 1)
            del self._path[same:]
            self.endRemoveRows()
        if same < len(path):
            self.beginInsertRows(QModelIndex(), same, len(path) - 1)
            self._path = path
            self.endInsertRows()
