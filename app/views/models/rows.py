"""Model and delegate of the model dialog's list: headings, and rows with name, facts, verdict and download progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import (
    QAbstractItemModel,
    QAbstractListModel,
    QEvent,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QRect,
    QRectF,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import QFont, QFontMetrics, QKeyEvent, QMouseEvent, QPainter
from PySide6.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from app.catalog.downloads import Transfer
from app.catalog.recommended import Recommended
from app.settings.theme import BUTTON_RADIUS, INSIDE, RELATED, TARGET, Theme
from app.views.models import words
from core.hub.fit import Fit
from core.hub.installed import Installed
from core.hub.listing import ModelInfo

RowRole = Qt.ItemDataRole.UserRole + 1
Index = QModelIndex | QPersistentModelIndex
ROW, HEADING, BAR, SIDE = 64, 32, 4, 16
LEAST_OWNER = 32
ALIGN_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
ALIGN_LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter


@dataclass(frozen=True)
class Row:
    """One model of the list and what is known of it.

    `model`: what is downloaded and used: the id, or, in a repository with several GGUF files, the chosen one ("" if
    none is).
    """

    id: str
    here: Installed | None = None
    known: Recommended | None = None
    info: ModelInfo | None = None
    fit: Fit | None = None
    transfer: Transfer | None = None
    model: str = ""

    @property
    def facts(self) -> str:
        """Sizes and figures in a few words."""
        if self.known:
            known = self.known
            return words.facts(known.parameters, known.download_bytes, known.license, gated=known.gated)
        if self.info:
            info = self.info
            form = "GGUF" if info.gguf_only else ""
            return words.facts(info.parameter_count, info.weight_bytes, info.license, gated=info.gated, form=form)
        return words.size(self.here.total) if self.here else ""

    @property
    def is_whole(self) -> bool:
        """Whether all files are installed."""
        return self.here is not None and self.here.complete

    @property
    def is_loading(self) -> bool:
        """Whether a download runs, is queued, paused or failed."""
        if self.transfer is not None and self.transfer.phase != "done":
            return True
        return self.here is not None and not self.here.complete

    @property
    def status(self) -> str:
        """Status line of the download, empty if there is none."""
        if self.transfer is not None and self.transfer.phase != "done":
            return words.transfer(self.transfer)
        return words.unfinished(self.here) if self.here and not self.here.complete else ""

    @property
    def share(self) -> float:
        """Downloaded share, 0-1."""
        progress = self.transfer.progress if self.transfer else None
        if progress is not None and progress.total:
            return progress.done / progress.total
        return self.here.bytes / self.here.total if self.here and self.here.total else 0.0


class RowsModel(QAbstractListModel):
    """List model of headings (text) and `Row`s."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._rows: list[str | Row] = []

    def set_rows(self, rows: Sequence[str | Row]) -> None:
        """Replace the list. If the models and their order are the same, only their data changes."""
        if [_key(row) for row in rows] == [_key(row) for row in self._rows]:
            self._rows = list(rows)
            if rows:
                self.dataChanged.emit(self.index(0), self.index(len(rows) - 1))
            return
        self.beginResetModel()
        self._rows = list(rows)
        self.endResetModel()

    def change(self, row: Row) -> None:
        """Replace a model's row in place."""
        if (index := self.index_of(row.id)).isValid():
            self._rows[index.row()] = row
            self.dataChanged.emit(index, index)

    def row(self, index: Index) -> Row | None:
        """Return the model in a row; None for headings and rows that are gone."""
        item = self._rows[index.row()] if index.isValid() and index.row() < len(self._rows) else None
        return item if isinstance(item, Row) else None

    def index_of(self, id: str) -> QModelIndex:
        """Return the first row of a model, or an invalid index."""
        at = next((at for at, row in enumerate(self._rows) if isinstance(row, Row) and row.id == id), -1)
        return self.index(at)

    def first(self) -> QModelIndex:
        """Return the first row that is a model."""
        return self.index(next((at for at, row in enumerate(self._rows) if isinstance(row, Row)), -1))

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        row = self.row(index)
        if row is None:
            spoken = role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole) and index.isValid()
            return str(self._rows[index.row()]) if spoken else None
        if role == Qt.ItemDataRole.DisplayRole:
            return row.id
        if role == Qt.ItemDataRole.ToolTipRole:
            return f"{row.id}\n{words.tr(row.known.summary)}" if row.known else row.id
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return spoken_row(row)
        return row if role == RowRole else None

    def flags(self, index: Index) -> Qt.ItemFlag:
        if self.row(index) is None:
            return Qt.ItemFlag.NoItemFlags
        return Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


class ModelList(QListView):
    """List view.

    Signals: `entered_on` when a model is chosen by Return or a double click; `toggled(id)` by Space.
    """

    entered_on = Signal()
    toggled = Signal(str)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        row = self.currentIndex().data(RowRole)
        if isinstance(row, Row) and event.key() == Qt.Key.Key_Space:
            self.toggled.emit(row.id)
        elif isinstance(row, Row) and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.entered_on.emit()
        else:
            super().keyPressEvent(event)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        super().mouseDoubleClickEvent(event)
        if self.indexAt(event.position().toPoint()).data(RowRole) is not None:
            self.entered_on.emit()


def spoken_row(row: Row) -> str:
    """Describe a row for screen readers."""
    parts = [row.id, row.facts.replace(" · ", ", ")]
    if row.fit:
        parts += [words.tr(words.VERDICTS[row.fit.kind][0]), words.speed(row.fit).replace("–", f" {words.tr('to')} ")]
    if row.is_whole:
        parts.append(words.tr("on this computer"))
    return ", ".join(part for part in (*parts, row.status) if part)


class RowsDelegate(QStyledItemDelegate):
    """Paints rows from the theme.

    Signal: `toggled(id)` when the pause or resume sign of a download is pressed.
    """

    toggled = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        if index.data(RowRole) is None:
            return QSize(0, HEADING)
        lines = sum(QFontMetrics(self._theme.font(role)).height() for role in ("base", "small"))
        return QSize(0, max(ROW, lines + 2 * RELATED + INSIDE))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        row = index.data(RowRole)
        if isinstance(row, Row):
            self._paint_row(painter, option, row)
        else:
            font = self._theme.font("small")
            font.setWeight(QFont.Weight.DemiBold)
            place = option.rect.adjusted(RELATED * 2, 0, -RELATED, -INSIDE)
            self._text(painter, place, str(index.data()), font, "muted", Qt.AlignmentFlag.AlignBottom)
        painter.restore()

    def editorEvent(self, event: QEvent, model: QAbstractItemModel, option: QStyleOptionViewItem, index: Index) -> bool:
        row = index.data(RowRole)
        if isinstance(event, QMouseEvent) and isinstance(row, Row) and row.is_loading:
            inside = self.sign_box(option.rect).contains(event.position().toPoint())
            if inside and event.type() == QEvent.Type.MouseButtonRelease:
                self.toggled.emit(row.id)
            return inside
        return False

    def sign_box(self, box: QRect) -> QRect:
        """Return the clickable area of a row's pause or resume sign."""
        side = TARGET
        return QRect(box.right() - side - RELATED * 2, box.center().y() - side // 2, side, side)

    def _paint_row(self, painter: QPainter, option: QStyleOptionViewItem, row: Row) -> None:
        box = option.rect.adjusted(RELATED, 1, -RELATED, -1)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        if selected or option.state & QStyle.StateFlag.State_MouseOver:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._theme.colour("tint" if selected else "side"))
            painter.drawRoundedRect(box, BUTTON_RADIUS, BUTTON_RADIUS)
        if selected and option.state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(self._theme.colour("accent"))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(box).adjusted(0.5, 0.5, -0.5, -0.5), BUTTON_RADIUS, BUTTON_RADIUS)
        inner = box.adjusted(RELATED, RELATED, -RELATED, -RELATED)
        top, bottom = QRect(inner), QRect(inner)
        top.setBottom(inner.center().y())
        bottom.setTop(inner.center().y() + 1)
        if row.is_loading:
            self._paint_sign(painter, self.sign_box(option.rect), row)
            for part in (top, bottom):
                part.setRight(inner.right() - TARGET - RELATED)
            self._paint_transfer(painter, bottom, row)
        else:
            self._paint_facts(painter, bottom, row)
        self._paint_name(painter, top, row)

    def _paint_name(self, painter: QPainter, box: QRect, row: Row) -> None:
        right = QRect(box)
        # A running download needs the room; the details show the verdict.
        if row.fit is not None and not row.is_loading:
            word, icon, token = words.VERDICTS[row.fit.kind]
            word = words.tr(word)
            small = self._theme.font("small")
            width = QFontMetrics(small).horizontalAdvance(word)
            self._text(painter, right, word, small, token, ALIGN_RIGHT)
            ratio = painter.device().devicePixelRatioF()
            left = right.right() - width - SIDE - INSIDE
            painter.drawPixmap(left, box.center().y() - SIDE // 2 + 1, self._theme.pixmap(icon, token, SIDE, ratio))
            right.setRight(left - RELATED)
        self._paint_id(painter, right, row.id)

    def _paint_id(self, painter: QPainter, box: QRect, id: str) -> None:
        """Paint the model's name, then as much of its owner as fits."""
        owner, name = words.owner_and_name(id)
        font = self._theme.font()
        font.setWeight(QFont.Weight.DemiBold)
        self._text(painter, box, name, font, "text", ALIGN_LEFT)
        rest = box.adjusted(QFontMetrics(font).horizontalAdvance(name) + RELATED, 1, 0, 0)
        if rest.width() >= LEAST_OWNER:
            self._text(painter, rest, owner, self._theme.font("small"), "muted", ALIGN_LEFT)

    def _paint_facts(self, painter: QPainter, box: QRect, row: Row) -> None:
        small, left = self._theme.font("small"), QRect(box)
        if row.fit is not None and (speed := words.speed(row.fit)):
            self._text(painter, box, speed, small, "muted", ALIGN_RIGHT)
            left.setRight(box.right() - QFontMetrics(small).horizontalAdvance(speed) - RELATED)
        self._text(painter, left, row.facts, small, "muted", ALIGN_LEFT)

    def _paint_transfer(self, painter: QPainter, box: QRect, row: Row) -> None:
        failed = row.transfer is not None and row.transfer.phase == "failed"
        self._text(painter, box, row.status, self._theme.font("small"), "danger" if failed else "muted", ALIGN_LEFT)
        bar = QRectF(box.left(), box.bottom() - BAR + 4, box.width(), BAR)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._theme.colour("border"))
        painter.drawRoundedRect(bar, BAR / 2, BAR / 2)
        bar.setWidth(bar.width() * row.share)
        running = row.transfer is not None and row.transfer.is_active
        painter.setBrush(self._theme.colour("danger" if failed else "accent" if running else "other"))
        painter.drawRoundedRect(bar, BAR / 2, BAR / 2)

    def _paint_sign(self, painter: QPainter, box: QRect, row: Row) -> None:
        colour = self._theme.colour("text")
        middle = QRectF(box).center()
        if row.transfer is not None and row.transfer.is_active:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(colour)
            for left in (-5.0, 2.0):
                painter.drawRoundedRect(QRectF(middle.x() + left, middle.y() - 6, 3, 12), 1, 1)
            return
        ratio = painter.device().devicePixelRatioF()
        icon = self._theme.pixmap("continue", "text", SIDE, ratio)
        painter.drawPixmap(round(middle.x()) - SIDE // 2, round(middle.y()) - SIDE // 2, icon)

    def _text(
        self,
        painter: QPainter,
        box: QRect,
        text: str,
        font: QFont,
        token: str,
        align: Qt.AlignmentFlag,
    ) -> None:
        painter.setFont(font)
        painter.setPen(self._theme.colour(token))
        painter.drawText(box, int(align), QFontMetrics(font).elidedText(text, Qt.TextElideMode.ElideRight, box.width()))


def _key(row: str | Row) -> str:
    return row if isinstance(row, str) else f"\0{row.id}"
