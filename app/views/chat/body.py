"""The text of one reply: prose and code blocks below each other, fed as it streams, selectable as one text."""

from __future__ import annotations

import time
from collections import deque

from PySide6.QtCore import QEvent, QObject, QPoint, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication, QKeyEvent, QKeySequence, QMouseEvent, QTextCursor
from PySide6.QtWidgets import QPlainTextEdit, QWidget

from app.settings.theme import RELATED, Theme
from app.text.markdown_stream import CodeEnd, CodeStart, CodeText, Part, Prose, Splitter
from app.views.chat.prose import STEP
from app.views.chat.text import CodeView, ProseView

SLICE_S = 0.008
"""Longest time spent on layout before returning to the event loop."""
REST = 6
"""A tail that took long to show (a large table) is shown again after this multiple of that time."""
Segment = ProseView | CodeView
Edit = ProseView | QPlainTextEdit


class Body(QWidget):
    """Lays out the segments of a reply.

    Signals: `grown` when the height may have changed; `link(str)` when a link is pressed.
    """

    grown = Signal()
    link = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._splitter = Splitter()
        self.segments: list[Segment] = []
        """Prose and code, from top to bottom."""
        self._heights: dict[Segment, tuple[int, int]] = {}
        self._waiting: deque[Part] = deque()
        self._fed = 0
        self._finished = False
        self._rest_until = 0.0
        self._anchor: tuple[int, int] | None = None

    def feed(self, text: str, finished: bool) -> None:
        """Show `text`, which extends the text fed before. `finished`: nothing will follow."""
        if self._finished and (not finished or len(text) < self._fed):
            self._restart()
        self._waiting.extend(self._splitter.push(text[self._fed :]))
        self._fed = len(text)
        if finished and not self._finished:
            self._waiting.extend(self._splitter.finish())
        self._finished = finished
        self._work()

    @property
    def settled(self) -> bool:
        """Whether everything that was fed is shown."""
        return not self._waiting

    def measure(self, width: int) -> int:
        """Lay out the segments at this width and return the total height."""
        top = 0
        for segment in self.segments:
            left = segment.level * STEP if isinstance(segment, CodeView) else 0
            known = self._heights.get(segment)
            height = known[1] if known and known[0] == width else segment.measure(width - left)
            self._heights[segment] = (width, height)
            gap = 0 if top == 0 else RELATED
            segment.setGeometry(left, top + gap, width - left, height)
            segment.show()  # not before: it would lie over the first lines
            top += gap + height
        return top

    def selected_text(self) -> str:
        """Return the selection over all segments."""
        parts = (edit.textCursor().selectedText().replace("\u2029", "\n") for edit in self.edits())
        return "\n".join(part.replace("\u2028", "\n").rstrip("\n") for part in parts if part)

    def clear_selection(self) -> None:
        """Clear the selection of all segments."""
        for edit in self.edits():
            cursor = edit.textCursor()
            if cursor.hasSelection():
                cursor.clearSelection()
                edit.setTextCursor(cursor)

    def _restart(self) -> None:
        """Start over with a finished text that goes on: its last run may have become longer."""
        for segment in self.segments:
            segment.hide()
            segment.deleteLater()
        self.segments, self._heights, self._fed, self._finished = [], {}, 0, False
        self._splitter = Splitter()
        self._waiting.clear()

    def _work(self) -> None:
        deadline = time.perf_counter() + SLICE_S
        while self._waiting and time.perf_counter() < deadline:
            self._take(self._waiting.popleft())
        if self._waiting:
            QTimer.singleShot(0, self, self._work)
        elif not self._finished:
            self._show_tail()
        self.grown.emit()

    def _take(self, part: Part) -> None:
        match part:
            case Prose():
                self._prose().commit(part)
            case CodeStart(language, level):
                self._settle_tail()
                self._add(CodeView(self._theme, language, level, self))
            case CodeText(text):
                self._code().append(text)
            case CodeEnd():
                self._code().set_tail("")
                self._heights.pop(self.segments[-1], None)
                return
        self._heights.pop(self.segments[-1], None)

    def _show_tail(self) -> None:
        began = time.perf_counter()
        if began < self._rest_until:
            return
        tail = self._splitter.tail
        if self._splitter.in_code:
            self._code().set_tail(tail.text)
        elif tail.text.strip() or (self.segments and isinstance(self.segments[-1], ProseView)):
            self._prose().set_tail(tail)
        if self.segments:
            self._heights.pop(self.segments[-1], None)
        self._rest_until = time.perf_counter() + REST * (time.perf_counter() - began) if tail.text else 0.0

    def _settle_tail(self) -> None:
        """Clear the tail of the prose above: it has become something else."""
        if self.segments and isinstance(self.segments[-1], ProseView):
            self.segments[-1].set_tail(Prose(""))
            self._heights.pop(self.segments[-1], None)

    def _prose(self) -> ProseView:
        last = self.segments[-1] if self.segments else None
        if not isinstance(last, ProseView) or last.full:
            self._settle_tail()
            view = ProseView(self._theme, self)
            view.link.connect(self.link)
            self._add(view)
            return view
        return last

    def _code(self) -> CodeView:
        last = self.segments[-1]
        assert isinstance(last, CodeView)
        return last

    def _add(self, segment: Segment) -> None:
        self.segments.append(segment)
        edit = segment.edit if isinstance(segment, CodeView) else segment
        edit.installEventFilter(self)
        edit.viewport().installEventFilter(self)

    def edits(self) -> list[Edit]:
        """Return the text widgets of prose and code, from top to bottom."""
        return [segment.edit if isinstance(segment, CodeView) else segment for segment in self.segments]

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() not in (QEvent.Type.KeyPress, QEvent.Type.MouseButtonPress, QEvent.Type.MouseMove):
            return False
        edits = self.edits()
        at = next((i for i, edit in enumerate(edits) if watched in (edit, edit.viewport())), None)
        if at is None:
            return False
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            return self._on_key(event)
        if not isinstance(event, QMouseEvent) or watched is not edits[at].viewport():
            return False
        if event.type() == QEvent.Type.MouseButtonPress and event.button() == Qt.MouseButton.LeftButton:
            self.clear_selection()
            self._anchor = (at, edits[at].cursorForPosition(event.position().toPoint()).position())
        elif event.type() == QEvent.Type.MouseMove and event.buttons() & Qt.MouseButton.LeftButton and self._anchor:
            return self._drag_to(edits[at].viewport().mapTo(self, event.position().toPoint()))
        return False

    def _on_key(self, event: QKeyEvent) -> bool:
        if event.matches(QKeySequence.StandardKey.Copy) and (text := self.selected_text()):
            QGuiApplication.clipboard().setText(text)
            return True
        if event.matches(QKeySequence.StandardKey.SelectAll):
            for edit in self.edits():
                edit.selectAll()
            return True
        return False

    def _drag_to(self, point: QPoint) -> bool:
        """Extend the selection from the pressed position to `point`. False if one segment can do it alone."""
        assert self._anchor is not None
        start, position = self._anchor
        edits = self.edits()
        end = next((i for i, s in enumerate(self.segments) if point.y() <= s.geometry().bottom()), len(edits) - 1)
        if end == start:
            for i, edit in enumerate(edits):
                if i != start and edit.textCursor().hasSelection():
                    _select(edit, 0, 0)
            return False
        down = end > start
        for i, edit in enumerate(edits):
            last = edit.document().characterCount() - 1
            here = edit.cursorForPosition(edit.viewport().mapFrom(self, point)).position()
            if i == start:
                _select(edit, position, last if down else 0)
            elif i == end:
                _select(edit, 0 if down else last, here)
            elif min(start, end) < i < max(start, end):
                _select(edit, 0, last)
            else:
                _select(edit, 0, 0)
        return True


def _select(edit: Edit, anchor: int, position: int) -> None:
    cursor = edit.textCursor()
    cursor.setPosition(anchor)
    cursor.setPosition(position, QTextCursor.MoveMode.KeepAnchor)
    edit.setTextCursor(cursor)
