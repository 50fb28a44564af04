"""The scrolling conversation. Only the turns near the viewport have widgets.

The heights of the others are estimated and corrected as they come near; what the user looks at does not move.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from PySide6.QtCore import QModelIndex, QPoint, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QAbstractScrollArea, QApplication, QFrame, QWidget

from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Conversation, Turn
from app.i18n.translator import tr
from app.settings.theme import COLUMN_WIDTH, EDGE, GROUP, RELATED, TARGET, Theme
from app.text.places import Sought
from app.views.chat.found import offset_of
from app.views.chat.message import MessageView, ReplyMessage, UserMessage
from app.views.chat.tool_card import ToolCard
from app.views.controls.controls import RoundButton
from app.views.controls.focus_ring import FocusRing
from app.views.controls.tab_stops import holds_focus, order_as_read

GAP = 12
"""Pixels between two turns, besides the row of actions."""
SLACK = 24
"""Pixels from the end that count as at the end."""
BEFORE = 3
"""What was found is shown below the first 1/N of the view."""
KEPT = 1.5
"""Widgets are kept up to this many viewport heights outside of the view."""


class Transcript(QAbstractScrollArea):
    """View of the chat model.

    Signals: `wished(action, turn id)`; `edited(turn id, text)`; `link(str)`; `opened(Document)` when a chip is pressed;
    `freed` when the widget with keyboard focus has gone.
    """

    freed = Signal()
    wished = Signal(str, str)
    edited = Signal(str, str)
    link = Signal(str)
    opened = Signal(object)

    def __init__(self, theme: Theme, chat: ChatModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._chat = theme, chat
        self._views: dict[str, MessageView] = {}
        self._ids: list[str] = []
        self._heights: list[int] = []
        self._measured: set[str] = set()
        self._width = 0
        self.enter_sends = True
        self._following = True
        self._anchor = (0, 0)
        self._sought: tuple[str, Sought] | None = None
        self._arranging = False
        self._jump = RoundButton(theme, "arrow-down", tr("Go to the end"), self)
        self._jump.fill, self._jump.token = "raised", "text"
        self._jump.clicked.connect(self.go_to_end)
        self._ring = FocusRing(theme, self)
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(self._on_later)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName(tr("Conversation"))
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.verticalScrollBar().setSingleStep(TARGET)
        self.verticalScrollBar().valueChanged.connect(self._on_scrolled)
        chat.modelReset.connect(self._on_reset)
        chat.rowsInserted.connect(self._on_inserted)
        chat.added.connect(self._on_added)
        chat.rowsRemoved.connect(self._on_removed)
        chat.dataChanged.connect(self._on_changed)
        theme.changed.connect(self._on_theme)
        self._on_reset()

    @property
    def following(self) -> bool:
        """Whether the view follows the end while the reply grows."""
        return self._following

    def view_of(self, id: str) -> MessageView | None:
        """Return the widget of a turn, if it is near the viewport."""
        return self._views.get(id)

    def set_enter_sends(self, enter_sends: bool) -> None:
        """Set whether Enter alone sends an edited turn."""
        self.enter_sends = enter_sends
        for view in self._views.values():
            view.enter_sends = enter_sends

    def go_to_end(self) -> None:
        """Scroll to the last turn and follow it."""
        self._following = True
        self.arrange()

    def show_turn(self, id: str) -> None:
        """Scroll a turn to the top of the view."""
        self._scroll_to(id, -GROUP)

    def show_place(self, id: str, sought: Sought) -> None:
        """Scroll to what was found in a turn, with some of what stands before it."""
        self.show_turn(id)
        self._sought = id, sought
        self._seek()

    def _seek(self) -> None:
        """Scroll to what is sought once its turn is shown in full."""
        if self._sought is None or not (view := self._views.get(self._sought[0])) or not view.settled:
            return
        (id, sought), self._sought = self._sought, None
        offset, before = offset_of(sought, view), self.viewport().height() // BEFORE
        if offset is not None and offset > before:
            self._scroll_to(id, offset - before)

    def _scroll_to(self, id: str, offset: int) -> None:
        """Scroll so that the view begins this many pixels below the top of a turn."""
        self._sought = None
        self._following = False
        self._anchor = (self._ids.index(id), offset)
        self.arrange()

    def order_stops(self) -> None:
        """Let Tab visit the turns from first to last, whenever their widgets were made."""
        order_as_read(self, [self._views[id] for id in self._ids if id in self._views])

    def show_focus(self) -> None:
        """Scroll until the widget with keyboard focus can be seen."""
        focus = self.window().focusWidget()
        view = next((view for view in self._views.values() if focus is not None and view.isAncestorOf(focus)), None)
        if view is None or focus is None:
            return
        top = focus.mapTo(view, QPoint()).y()
        bounds = sorted((top - GROUP, top + focus.height() + GROUP - self.viewport().height()))
        wanted = min(max(-view.y(), bounds[0]), bounds[1])
        if wanted != -view.y():
            self._scroll_to(view.turn.id, wanted)

    def arrange(self) -> None:
        """Create, measure and place the widgets that the view needs."""
        if self._arranging or not self.viewport().width():
            return
        self._arranging = True
        try:
            self._arrange()
        finally:
            self._arranging = False

    def _arrange(self) -> None:
        # Based on the whole width: with the viewport's, the text would jump when the scroll bar appears.
        width = min(COLUMN_WIDTH, self.width() - 2 * EDGE)
        if width != self._width:
            self._width = width
            self._measured.clear()
        for _ in range(6):
            tops = self._tops()
            position = self._position(tops)
            if not self._realise(tops, position):
                break
        self._drop_far(tops, position)
        self._place(tops, position)

    def _tops(self) -> list[int]:
        """Return the top of each turn, and the end of the last."""
        return list(accumulate((height + GAP for height in self._heights), initial=EDGE))

    def _position(self, tops: list[int]) -> int:
        bar, view = self.verticalScrollBar(), self.viewport().height()
        bar.setRange(0, max(0, tops[-1] + RELATED - view))
        bar.setPageStep(view)
        if not self._following and self._ids:
            row, offset = self._anchor
            bar.setValue(tops[min(row, len(self._ids) - 1)] + offset)
        else:
            bar.setValue(bar.maximum())
        return bar.value()

    def _near(self, tops: list[int], position: int, margin: float) -> range:
        view = self.viewport().height()
        first = max(0, bisect_right(tops, position - margin) - 1)
        last = bisect_right(tops, position + view + margin)
        return range(first, min(last, len(self._ids)))

    def _realise(self, tops: list[int], position: int) -> bool:
        """Measure the turns near the view; True if a height differs from its estimate."""
        surprised = False
        for row in self._near(tops, position, self.viewport().height() / 4):
            id = self._ids[row]
            if id not in self._views:
                self._make(row)
            if id in self._measured:
                continue
            height = self._views[id].measure(self._width)
            self._measured.add(id)
            surprised |= height != self._heights[row]
            self._heights[row] = height
        return surprised

    def _make(self, row: int) -> None:
        turn = self._chat.turn(row)
        asked = turn.id if turn.role == "user" else turn.parent
        excerpts = self._chat.conversation.excerpts(asked) if asked else []
        kind = {"user": UserMessage, "tool": ToolCard}.get(turn.role, ReplyMessage)
        view = kind(self._theme, turn, excerpts, self.viewport())
        view.enter_sends = self.enter_sends
        view.show_turn(self._chat.conversation.versions(turn.id))
        view.grown.connect(self._on_grown)
        view.wished.connect(self.wished)
        view.edited.connect(self.edited)
        view.link.connect(self.link)
        view.opened.connect(self.opened)
        view.freed.connect(self.freed)
        self._views[turn.id] = view
        self._measured.discard(turn.id)

    def _drop_far(self, tops: list[int], position: int) -> None:
        near = self._near(tops, position, self.viewport().height() * KEPT)
        keep = {self._ids[row] for row in near}
        focus = QApplication.focusWidget()
        for id in [id for id in self._views if id not in keep]:
            view = self._views[id]
            if view.editor is None and not (focus is not None and view.isAncestorOf(focus)):
                self._remove_view(id)

    def _remove_view(self, id: str) -> None:
        view = self._views.pop(id)
        self._measured.discard(id)
        if holds_focus(view):
            self.freed.emit()
        view.hide()
        view.deleteLater()

    def _place(self, tops: list[int], position: int) -> None:
        # Centred in the whole width, like the composer.
        left = (self.width() - self._width) // 2
        rows = {id: row for row, id in enumerate(self._ids)} if len(self._views) else {}
        for id, view in self._views.items():
            row = rows[id]
            view.setGeometry(left, tops[row] - position, self._width, self._heights[row])
            view.setVisible(True)
        bar = self.verticalScrollBar()
        self._jump.setVisible(bar.maximum() - bar.value() > SLACK and not self._following)
        self._jump.move(self.viewport().width() // 2 - 16, self.viewport().height() - 44)
        self._jump.raise_()

    def _estimate(self, turn: Turn) -> int:
        line = self.fontMetrics().height() * 1.4
        per_line = max(20, (self._width or COLUMN_WIDTH) // 8)
        lines = turn.content.count("\n") + len(turn.content) // per_line + 1
        return round(lines * line) + TARGET + GAP

    def _on_reset(self) -> None:
        for id in list(self._views):
            self._remove_view(id)
        turns = [self._chat.turn(row) for row in range(self._chat.rowCount())]
        self._ids = [turn.id for turn in turns]
        self._heights = [self._estimate(turn) for turn in turns]
        self._measured.clear()
        self._following, self._sought = True, None
        self.arrange()

    def _on_inserted(self, parent: QModelIndex, first: int, last: int) -> None:
        turns = [self._chat.turn(row) for row in range(first, last + 1)]
        self._ids[first:first] = [turn.id for turn in turns]
        self._heights[first:first] = [self._estimate(turn) for turn in turns]
        self._soon()

    def _on_added(self, conversation: Conversation, turn: Turn) -> None:
        """Follow a new turn, which the user waits for; another version of an old one is shown in place."""
        if conversation is self._chat.conversation:
            self._following = True
            self._soon()

    def _on_removed(self, parent: QModelIndex, first: int, last: int) -> None:
        for id in self._ids[first : last + 1]:
            if id in self._views:
                self._remove_view(id)
        del self._ids[first : last + 1], self._heights[first : last + 1]
        self._soon()

    def _on_changed(self, first: QModelIndex, last: QModelIndex) -> None:
        for row in range(first.row(), last.row() + 1):
            turn = self._chat.turn(row)
            if view := self._views.get(turn.id):
                view.show_turn(self._chat.conversation.versions(turn.id))
                self._measured.discard(turn.id)
        self._soon()

    def _on_grown(self) -> None:
        view = self.sender()
        if isinstance(view, MessageView):
            self._measured.discard(view.turn.id)
        self._soon()

    def _on_later(self) -> None:
        self.arrange()
        self._seek()

    def _soon(self) -> None:
        if not self._later.isActive():
            self._later.start(0)

    def _on_scrolled(self, value: int) -> None:
        if self._arranging:
            return
        self._sought = None
        bar = self.verticalScrollBar()
        self._following = value >= bar.maximum() - SLACK
        self._remember(value)
        self.arrange()

    def _remember(self, value: int) -> None:
        """Anchor the view at the turn at its top, which must not move."""
        tops = self._tops()
        row = max(0, min(len(self._ids) - 1, bisect_right(tops, value) - 1))
        self._anchor = (row, value - tops[row])

    def _on_theme(self) -> None:
        written = {id: view.editor.edit.toPlainText() for id, view in self._views.items() if view.editor is not None}
        for id in list(self._views):
            self._remove_view(id)
        self._measured.clear()
        for id, text in written.items():
            self._make(self._ids.index(id))
            self._views[id].begin_edit(text)
        self.arrange()
        self.viewport().update()

    def scrollContentsBy(self, dx: int, dy: int) -> None:
        """No-op: `arrange` places the widgets."""

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.arrange()

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self.viewport()).fillRect(event.rect(), self._theme.colour("window"))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        bar = self.verticalScrollBar()
        page = bar.pageStep() - 2 * TARGET
        moves = {
            Qt.Key.Key_PageUp: bar.value() - page,
            Qt.Key.Key_PageDown: bar.value() + page,
            Qt.Key.Key_Home: 0,
            Qt.Key.Key_End: bar.maximum(),
            Qt.Key.Key_Up: bar.value() - bar.singleStep(),
            Qt.Key.Key_Down: bar.value() + bar.singleStep(),
        }
        if (target := moves.get(Qt.Key(event.key()))) is not None:
            bar.setValue(target)
        else:
            super().keyPressEvent(event)
