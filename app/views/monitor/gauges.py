"""Painted parts of the live view: a bar of shares, a speed curve, and a name with its figure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QBrush, QFontMetrics, QHelpEvent, QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from app.i18n import formatting
from app.i18n.translator import tr
from app.settings.theme import INSIDE, Theme
from core.spec import Prediction

SPAN_S = 60.0
BAR_HEIGHT = 12
SPARK_HEIGHT = 64
HEADROOM = 1.4
"""Factor of room above the highest value, for the label."""
GAP_S = 8.0
"""A longer time without a figure is a pause."""
LEAST_SEGMENT = 2.0
"""Minimum width, in pixels, of an existing part."""


@dataclass(frozen=True)
class Part:
    """A part of a bar: colour token, amount in any unit, and words. Hatched parts belong to other programs."""

    token: str
    amount: float
    words: str
    hatched: bool = False


class ShareBar(QWidget):
    """A bar divided by amounts, with a tool tip per part; the rest of `total` stays empty."""

    def __init__(self, theme: Theme, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._name = theme, name
        self._parts: tuple[Part, ...] = ()
        self._total = 0.0
        self.setFixedHeight(BAR_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(name)
        theme.changed.connect(self.update)

    def show_parts(self, parts: Sequence[Part], total: float) -> None:
        """Set the parts, from the left, and the total."""
        shown = tuple(part for part in parts if part.amount > 0)
        if (shown, total) != (self._parts, self._total):
            self._parts, self._total = shown, total
            self.setAccessibleName(f"{self._name}: {', '.join(part.words for part in shown) or formatting.unknown()}")
            self.update()

    def segments(self) -> list[tuple[Part, QRectF]]:
        """Return each part with its rectangle."""
        whole = max(self._total, sum(part.amount for part in self._parts))
        left, result = 0.0, []
        for part in self._parts:
            width = max(LEAST_SEGMENT, self.width() * part.amount / whole)
            width = min(width, self.width() - left)
            result.append((part, QRectF(left, 0, width, self.height())))
            left += width
        return result

    def event(self, event: QEvent) -> bool:
        if isinstance(event, QHelpEvent):
            words = next((part.words for part, box in self.segments() if box.contains(QPointF(event.pos()))), "")
            QToolTip.showText(event.globalPos(), words or self.accessibleName(), self)
            return True
        return super().event(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        outline = QPainterPath()
        outline.addRoundedRect(QRectF(self.rect()), INSIDE, INSIDE)
        painter.setClipPath(outline)
        painter.fillRect(self.rect(), self._theme.colour("border"))
        for part, box in self.segments():
            # A gap between neighbours: parts can be told apart without their colours.
            inner = box.adjusted(0, 0, -1, 0) if box.width() > LEAST_SEGMENT else box
            painter.fillRect(inner, self._theme.colour(part.token))
            if part.hatched:
                painter.fillRect(inner, QBrush(self._theme.colour("side"), Qt.BrushStyle.BDiagPattern))


class SpeedLine(QWidget):
    """Tokens per second over the last minute, with the predicted range as a band. Pauses are gaps."""

    def __init__(
        self, theme: Theme, parent: QWidget | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(parent)
        self._theme, self._clock = theme, clock
        self._points: deque[tuple[float, float | None]] = deque(maxlen=1200)
        self._predicted: Prediction | None = None
        self.setFixedHeight(SPARK_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._describe()
        theme.changed.connect(self.update)

    def add(self, tok_s: float | None) -> None:
        """Add the current speed; None while nothing is written."""
        if tok_s is None and (not self._points or self._points[-1][1] is None):
            self.update()
            return
        self._points.append((self._clock(), tok_s))
        self._describe()
        self.update()

    def set_predicted(self, predicted: Prediction | None) -> None:
        """Set the predicted speed, drawn as a band; None = no band."""
        if predicted != self._predicted:
            self._predicted = predicted
            self._describe()
            self.update()

    def top(self) -> float:
        """Return the value at the upper edge."""
        oldest = self._clock() - SPAN_S
        values = [value for at, value in self._points if value is not None and at >= oldest]
        if self._predicted:
            values.append(self._predicted.high)
        return max(values, default=0.0) * HEADROOM or 1.0

    def runs(self) -> list[list[QPointF]]:
        """Return one polyline per stretch without a pause."""
        now, top = self._clock(), self.top()
        lines: list[list[QPointF]] = [[]]
        before = now
        for at, value in self._points:
            if value is None or at - before > GAP_S:
                lines.append([])
            before = at
            if value is not None and at >= now - SPAN_S:
                x = self.width() * (1 - (now - at) / SPAN_S)
                lines[-1].append(QPointF(x, self._y(value, top)))
        return [line for line in lines if line]

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        top = self.top()
        painter.setPen(QPen(self._theme.colour("border"), 1))
        painter.drawLine(0, self.height() - 1, self.width(), self.height() - 1)
        if self._predicted:
            self._paint_predicted(painter, self._predicted, top)
        painter.setPen(QPen(self._theme.colour("accent"), 2))
        for line in self.runs():
            if len(line) == 1:
                painter.drawPoint(line[0])
            painter.drawPolyline(line)

    def _paint_predicted(self, painter: QPainter, predicted: Prediction, top: float) -> None:
        colour = self._theme.colour("muted")
        colour.setAlpha(36)
        high, low = self._y(predicted.high, top), self._y(predicted.low, top)
        painter.fillRect(QRectF(0, high, self.width(), max(1.0, low - high)), colour)
        y = self._y(predicted.likely, top)
        painter.setPen(QPen(self._theme.colour("muted"), 1, Qt.PenStyle.DashLine))
        painter.drawLine(QPointF(0, y), QPointF(self.width(), y))
        painter.setFont(self._theme.font("small"))
        metrics = painter.fontMetrics()
        above = high - metrics.descent() - 1
        below = low + metrics.ascent() + 1
        inside = y - metrics.descent() - 1
        fitting = [at for at in (above, below) if metrics.ascent() <= at <= self.height() - metrics.descent() - 1]
        painter.drawText(QPointF(0, fitting[0] if fitting else inside), tr("predicted"))

    def _y(self, value: float, top: float) -> float:
        return (self.height() - 2) * (1 - value / top) + 1

    def _describe(self) -> None:
        last = next((value for _, value in reversed(self._points) if value is not None), None)
        words = tr("Speed of the last minute: {} tokens/s").format(formatting.rate(last))
        if self._predicted:
            words = tr("{}, predicted {}").format(words, formatting.rate(self._predicted.likely))
        self.setAccessibleName(words)
        self.setToolTip(words)


class Figure(QWidget):
    """A name on the left and its value on the right, in tabular figures that do not move when they change."""

    def __init__(self, theme: Theme, name: str, tip: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._name, self._value = theme, name, formatting.unknown()
        self.setToolTip(f"{name}: {tip}" if tip else name)
        self.setAccessibleName(f"{name}: {formatting.unknown()}")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        theme.changed.connect(self.updateGeometry)

    @property
    def value(self) -> str:
        """The value shown."""
        return self._value

    def show_value(self, value: str) -> None:
        """Set the value."""
        if value != self._value:
            self._value = value
            self.setAccessibleName(f"{self._name}: {value}")
            self.update()

    def sizeHint(self) -> QSize:
        metrics = QFontMetrics(self._theme.font())
        return QSize(metrics.horizontalAdvance(self._name + self._value) + 16, metrics.height() + INSIDE)

    def minimumSizeHint(self) -> QSize:
        return QSize(80, self.sizeHint().height())

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(self._theme.font())
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.setPen(self._theme.colour("muted"))
        metrics = painter.fontMetrics()
        # If both do not fit, keep the figure readable; the tool tip has the full name.
        room = self.width() - metrics.horizontalAdvance(self._value) - INSIDE * 2
        name = metrics.elidedText(self._name, Qt.TextElideMode.ElideRight, max(0, room))
        painter.drawText(self.rect(), middle | Qt.AlignmentFlag.AlignLeft, name)
        painter.setPen(self._theme.colour("muted" if self._value == formatting.unknown() else "text"))
        painter.drawText(self.rect(), middle | Qt.AlignmentFlag.AlignRight, self._value)
