"""Model and delegate of the conversation list: headings by age, a row per conversation, snippets of search hits."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from PySide6.QtCore import (
    QAbstractItemModel,
    QAbstractListModel,
    QDateTime,
    QEvent,
    QLocale,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QPointF,
    QRect,
    QRectF,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import QFont, QFontMetrics, QPainter, QPen
from PySide6.QtWidgets import QLineEdit, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from app.conversations.store import MARK_END, MARK_START, Entry, Hit
from app.i18n.translator import locale
from app.settings.theme import BUTTON_RADIUS, ICON, INSIDE, RELATED, Theme

LineRole = Qt.ItemDataRole.UserRole + 1
Index = QModelIndex | QPersistentModelIndex
DAY_S = 86_400
MARGIN = RELATED
SIGN, DOT, RING = 16, 8, 1.5
"""Size in pixels of the icon at the end of a row, of the dot in its place, and the width of a ring's line."""
Progress = Literal["", "answered", "waiting", "unread"]
LEAD = 18
"""Longest text, in characters, before the first found word."""
_EMPHASIS = re.compile(r"\*\*|`+|\[\^\w+\]:?")
_MARKUP = re.compile(r"\|[|:\s-]*-{3,}[|:\s-]*|(?<!\S)\|(?!\S)|^\s*(?:#{1,6}|[-*+]|>)\s", re.MULTILINE)
"""Rules and borders of tables, and signs at the beginning of a line."""
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^\s()]*\)?")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Line:
    """A conversation in the list. `turn` and `snippet` (with marks): where a search found something."""

    entry: Entry
    turn: str = ""
    snippet: str = ""


def groups(entries: Sequence[Entry], now: float) -> Iterator[tuple[str, list[Entry]]]:
    """Group entries under headings, pinned ones first, omitting empty groups."""
    midnight = time.mktime((*time.localtime(now)[:3], 0, 0, 0, 0, 0, -1))
    limits = (("Today", midnight), ("Yesterday", midnight - DAY_S), ("Last 7 days", midnight - 7 * DAY_S))
    found: dict[str, list[Entry]] = {name: [] for name in ("Pinned", *(name for name, _ in limits), "Earlier")}
    for entry in entries:
        age = next((name for name, limit in limits if entry.updated >= limit), "Earlier")
        found["Pinned" if entry.pinned else age].append(entry)
    yield from ((name, members) for name, members in found.items() if members)


class EntryModel(QAbstractListModel):
    """List model of headings (text) and `Line`s.

    Signal: `renamed(id, title)` for an edited title; the model itself does not change.
    """

    renamed = Signal(str, str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._rows: list[str | Line] = []
        self._all: list[str | Line] = []
        self._open = self._answered = ""
        self._waiting: Sequence[str] = ()

    def set_entries(self, entries: Sequence[Entry], now: float) -> None:
        """Set the list; `show_all` shows it."""
        self._all = []
        for heading, members in groups(entries, now):
            self._all += [heading, *(Line(entry) for entry in members)]

    def show_all(self) -> None:
        """Show the conversations by age."""
        self._show(self._all)

    def show_hits(self, hits: Sequence[Hit]) -> None:
        """Show search hits."""
        self._show([Line(hit.entry, hit.turn or "", hit.snippet if hit.turn else "") for hit in hits])

    def set_open(self, conversation: str) -> None:
        """Set the conversation shown in the window."""
        self._open = conversation
        self._repaint()

    def set_progress(self, answered: str, waiting: Sequence[str]) -> None:
        """Set the conversation whose reply is being written, "" = none, and those with a question that waits."""
        if (answered, waiting) != (self._answered, self._waiting):
            self._answered, self._waiting = answered, waiting
            self._repaint()

    def is_open(self, line: Line) -> bool:
        """Whether this conversation is open."""
        return line.entry.id == self._open

    def progress(self, line: Line) -> Progress:
        """Return what happens in this conversation, or has happened unseen."""
        if line.entry.id == self._answered:
            return "answered"
        if line.entry.id in self._waiting:
            return "waiting"
        return "unread" if line.entry.unread and not self.is_open(line) else ""

    def index_of_open(self) -> QModelIndex:
        """Return the row of the open conversation, or an invalid index."""
        return self.index_of(self._open)

    def index_of(self, conversation: str) -> QModelIndex:
        """Return the row of a conversation, or an invalid index."""
        rows = (row for row, item in enumerate(self._rows) if isinstance(item, Line) and item.entry.id == conversation)
        return self.index(next(rows, -1))

    def line_near(self, row: int) -> QModelIndex:
        """Return the conversation nearest to a row, or an invalid index."""
        rows = (number for number, item in enumerate(self._rows) if isinstance(item, Line))
        return self.index(min(rows, key=lambda number: abs(number - row), default=-1))

    def snippet(self, turn: str) -> str:
        """Return the snippet of the search hit in a turn, "" if it is not in the list."""
        return next((row.snippet for row in self._rows if isinstance(row, Line) and row.turn == turn), "")

    def first_line(self) -> int | None:
        """Return the first row that is not a heading."""
        return next((row for row, item in enumerate(self._rows) if isinstance(item, Line)), None)

    def line(self, index: Index) -> Line | None:
        """Return the conversation in a row; None for headings and rows that are gone."""
        item = self._rows[index.row()] if index.isValid() and index.row() < len(self._rows) else None
        return item if isinstance(item, Line) else None

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        line = self.line(index)
        if line is None:
            heading = role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole) and index.isValid()
            return self.tr(str(self._rows[index.row()])) if heading else None
        title = line.entry.title or self.tr("Untitled")
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return title
        if role == Qt.ItemDataRole.ToolTipRole:
            # Python's %x would be American: the locale of a process that does not set one is "C".
            updated = QDateTime.fromSecsSinceEpoch(int(line.entry.updated))
            return f"{title}\n{locale().toString(updated, QLocale.FormatType.ShortFormat)}"
        if role == Qt.ItemDataRole.AccessibleTextRole:
            marks = [self.tr("pinned")] if line.entry.pinned else []
            words = {
                "answered": self.tr("being answered"),
                "waiting": self.tr("waiting for a reply"),
                "unread": self.tr("new reply"),
            }
            return ", ".join([title, *marks, *filter(None, [words.get(self.progress(line))])])
        return line if role == LineRole else None

    def setData(self, index: Index, value: object, role: int = Qt.ItemDataRole.EditRole) -> bool:
        line, title = self.line(index), " ".join(str(value).split())
        if line is None or role != Qt.ItemDataRole.EditRole or not title or title == line.entry.title:
            return False
        self.renamed.emit(line.entry.id, title)
        return True

    def flags(self, index: Index) -> Qt.ItemFlag:
        if self.line(index) is None:
            return Qt.ItemFlag.NoItemFlags
        return Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEditable

    def _repaint(self) -> None:
        if self._rows:
            self.dataChanged.emit(self.index(0), self.index(len(self._rows) - 1))

    def _show(self, rows: Sequence[str | Line]) -> None:
        self.beginResetModel()
        self._rows = list(rows)
        self.endResetModel()


class EntryDelegate(QStyledItemDelegate):
    """Paints rows from the theme, and edits titles in place."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        text, small = QFontMetrics(self._theme.font()).height(), QFontMetrics(self._theme.font("small")).height()
        line = index.data(LineRole)
        if line is None:
            return QSize(0, small + (RELATED if index.row() == 0 else RELATED * 2) + INSIDE)
        return QSize(0, text + RELATED * 2 + (small + 2 if line.snippet else 0))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        line = index.data(LineRole)
        if isinstance(line, Line):
            self._paint_line(painter, option, index, line)
        else:
            self._paint_heading(painter, option.rect, str(index.data()))
        painter.restore()

    def createEditor(self, parent: QWidget, option: QStyleOptionViewItem, index: Index) -> QWidget:
        editor = QLineEdit(parent)
        editor.setAccessibleName(self.tr("Title"))
        editor.setMaxLength(200)
        return editor

    def updateEditorGeometry(self, editor: QWidget, option: QStyleOptionViewItem, index: Index) -> None:
        editor.setGeometry(option.rect.adjusted(MARGIN, 1, -MARGIN, -1))

    def editorEvent(self, event: QEvent, model: QAbstractItemModel, option: QStyleOptionViewItem, index: Index) -> bool:
        return False

    def _paint_heading(self, painter: QPainter, box: QRect, words: str) -> None:
        font = self._theme.font("small")
        font.setWeight(QFont.Weight.DemiBold)
        painter.setFont(font)
        painter.setPen(self._theme.colour("muted"))
        place = box.adjusted(MARGIN * 2, 0, -MARGIN, -INSIDE)
        painter.drawText(place, Qt.AlignmentFlag.AlignBottom | Qt.AlignmentFlag.AlignLeft, words)

    def _paint_line(self, painter: QPainter, option: QStyleOptionViewItem, index: Index, line: Line) -> None:
        model = index.model()
        is_open = isinstance(model, EntryModel) and model.is_open(line)
        progress: Progress = model.progress(line) if isinstance(model, EntryModel) else ""
        hovered = bool(option.state & QStyle.StateFlag.State_MouseOver)
        focused = bool(option.state & QStyle.StateFlag.State_HasFocus)
        box = option.rect.adjusted(MARGIN, 1, -MARGIN, -1)
        if is_open or hovered:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._theme.colour("tint" if is_open else "hover"))
            painter.drawRoundedRect(box, BUTTON_RADIUS, BUTTON_RADIUS)
        if focused:
            painter.setPen(self._theme.colour("accent"))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(box.adjusted(1, 1, -1, -1), BUTTON_RADIUS, BUTTON_RADIUS)
        icon = "more" if hovered or focused else "pin" if line.entry.pinned else ""
        inner = box.adjusted(RELATED, 0, -(ICON + RELATED) if icon or progress else -RELATED, 0)
        self._paint_words(painter, inner, str(index.data()), line, is_open or progress == "unread")
        place = QRect(box.right() - SIGN - 5, box.center().y() - SIGN // 2 + 1, SIGN, SIGN)
        if icon == "more" or not progress:
            self._paint_icon(painter, place, icon)
        else:
            self._paint_progress(painter, QRectF(place).center(), progress)

    def _paint_icon(self, painter: QPainter, place: QRect, icon: str) -> None:
        if icon:
            ratio = painter.device().devicePixelRatioF()
            painter.drawPixmap(place.topLeft(), self._theme.pixmap(icon, "muted", place.width(), ratio))

    def _paint_progress(self, painter: QPainter, centre: QPointF, progress: Progress) -> None:
        """Paint three dots for a reply that is being written, a ring for a question that waits, a dot for a new
        reply."""
        colour = self._theme.colour("accent")
        if progress == "waiting":
            painter.setPen(QPen(colour, RING))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawEllipse(centre, (DOT - RING) / 2, (DOT - RING) / 2)
            return
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(colour)
        if progress == "unread":
            painter.drawEllipse(centre, DOT / 2, DOT / 2)
            return
        for step in (-1, 0, 1):
            painter.drawEllipse(centre + QPointF(step * DOT * 0.7, 0), DOT / 4, DOT / 4)

    def _paint_words(self, painter: QPainter, box: QRect, title: str, line: Line, is_bold: bool) -> None:
        font = self._theme.font()
        if is_bold:
            font.setWeight(QFont.Weight.DemiBold)
        metrics = QFontMetrics(font)
        painter.setFont(font)
        painter.setPen(self._theme.colour("text"))
        elided = metrics.elidedText(title, Qt.TextElideMode.ElideRight, box.width())
        if not line.snippet:
            painter.drawText(box, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, elided)
            return
        top = box.adjusted(0, RELATED - 2, 0, 0)
        painter.drawText(top, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft, elided)
        self._paint_snippet(painter, top.adjusted(0, metrics.height() + 1, 0, 0), line.snippet)

    def _paint_snippet(self, painter: QPainter, box: QRect, snippet: str) -> None:
        left = box.left()
        for words, is_found in runs(snippet):
            font = self._theme.font("small")
            font.setWeight(QFont.Weight.DemiBold if is_found else QFont.Weight.Normal)
            metrics = QFontMetrics(font)
            painter.setFont(font)
            painter.setPen(self._theme.colour("text" if is_found else "muted"))
            room = box.right() - left
            cut = metrics.elidedText(words, Qt.TextElideMode.ElideRight, room)
            painter.drawText(QRect(left, box.top(), room, box.height()), Qt.AlignmentFlag.AlignTop, cut)
            left += metrics.horizontalAdvance(words)
            if left >= box.right():
                return


def runs(snippet: str) -> list[tuple[str, bool]]:
    """Split a snippet into (text, was found) pieces, without signs of Markdown, shortening a long lead before the first
    found word."""
    snippet = _SPACES.sub(" ", _MARKUP.sub(" ", _LINK.sub(r"\1", _EMPHASIS.sub("", snippet))))
    if (start := snippet.find(MARK_START)) > LEAD:
        snippet = "…" + snippet[start - LEAD + 4 :]
    pieces = re.split(f"([{MARK_START}{MARK_END}])", snippet)
    found, result = False, []
    for piece in pieces:
        if piece in (MARK_START, MARK_END):
            found = piece == MARK_START
        elif piece:
            result.append((piece, found))
    return result
