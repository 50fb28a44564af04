"""Small controls that draw themselves from the theme's tokens."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QEnterEvent, QFocusEvent, QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QAbstractButton, QLabel, QSizePolicy, QWidget

from app.settings.theme import BUTTON_RADIUS, ICON, TARGET, Theme


class ElidedLabel(QLabel):
    """One line of words around a name, which is cut where it has no room; the tool tip then shows it whole."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._words, self._name = "", ""
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)

    def say(self, words: str, name: str) -> None:
        """Show these words, with the name in their gap."""
        self._words, self._name = words, name
        self.setAccessibleName(words.format(name))
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        metrics = self.fontMetrics()
        room = self.width() - metrics.horizontalAdvance(self._words.format(""))
        name = metrics.elidedText(self._name, Qt.TextElideMode.ElideRight, max(0, room))
        self.setText(self._words.format(name))
        self.setToolTip("" if name == self._name else self._words.format(self._name))


class IconButton(QAbstractButton):
    """A square button with an icon. While `faint`, it is drawn only on hover and focus, but keeps its place."""

    def __init__(self, theme: Theme, icon: str, name: str, parent: QWidget | None = None, size: int = TARGET) -> None:
        super().__init__(parent)
        self._theme = theme
        self._icon = icon
        self._faint = False
        self._size = size
        self.token = "muted"
        self.describe(name)
        self.setFixedSize(size, size)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)

    def describe(self, name: str) -> None:
        """Set the tool tip and the accessible name."""
        self.setAccessibleName(name)
        self.setToolTip(name)

    def set_icon(self, icon: str, name: str) -> None:
        """Set the icon and its name."""
        self._icon = icon
        self.describe(name)
        self.update()

    def set_faint(self, faint: bool) -> None:
        """Set whether the button is drawn only on hover and focus."""
        if faint != self._faint:
            self._faint = faint
            self.update()

    def sizeHint(self) -> QSize:
        return QSize(self._size, self._size)

    def enterEvent(self, event: QEnterEvent) -> None:
        self.update()
        super().enterEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        self.update()
        super().focusInEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._faint and not self.hasFocus() and not self.underMouse():
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self.isEnabled() and (self.isDown() or self.underMouse() or self.isChecked()):
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._theme.colour("border" if self.isDown() else "hover"))
            painter.drawRoundedRect(self.rect(), BUTTON_RADIUS, BUTTON_RADIUS)
        lively = self.isEnabled() and (self.underMouse() or self.isChecked() or self.hasFocus())
        self._paint_icon(painter, "text" if lively else self.token)
        if self.hasFocus():
            paint_focus(painter, self._theme, QRectF(self.rect()))

    def _paint_icon(self, painter: QPainter, token: str) -> None:
        side = min(ICON, self._size - 8)
        corner = QPoint((self.width() - side) // 2, (self.height() - side) // 2)
        if not self.isEnabled():
            painter.setOpacity(0.4)
        painter.drawPixmap(corner, self._theme.pixmap(self._icon, token, side, self.devicePixelRatioF()))


class RoundButton(IconButton):
    """A filled round button: send, stop, jump to the end."""

    def __init__(self, theme: Theme, icon: str, name: str, parent: QWidget | None = None, size: int = 32) -> None:
        super().__init__(theme, icon, name, parent, size)
        self.fill, self.token = "accent", "on_accent"

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        fill = self._theme.colour(self.fill if self.isEnabled() else "hover")
        if self.isDown():
            fill = fill.darker(112)
        elif self.underMouse() and self.isEnabled():
            fill = fill.lighter(108)
        painter.setBrush(fill)
        edge = self._theme.colour("muted") if self.fill == "raised" else QColor(Qt.GlobalColor.transparent)
        painter.setPen(QPen(edge, 1))
        painter.drawEllipse(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5))
        self._paint_icon(painter, self.token if self.isEnabled() else "muted")
        if self.hasFocus():
            paint_focus(painter, self._theme, QRectF(self.rect()), self._size / 2)


class Pane(QWidget):
    """A surface in a theme colour, with a line on each named side ("top", "bottom" ...)."""

    def __init__(self, theme: Theme, token: str, lines: tuple[str, ...] = (), parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._token, self._lines = theme, token, lines
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), self._theme.colour(self._token))
        painter.setPen(QPen(self._theme.colour("border"), 1))
        box = self.rect().adjusted(0, 0, -1, -1)
        edges = {
            "top": (box.topLeft(), box.topRight()),
            "bottom": (box.bottomLeft(), box.bottomRight()),
            "left": (box.topLeft(), box.bottomLeft()),
            "right": (box.topRight(), box.bottomRight()),
        }
        for line in self._lines:
            painter.drawLine(*edges[line])


def paint_focus(painter: QPainter, theme: Theme, box: QRectF, radius: float = BUTTON_RADIUS) -> None:
    """Draw the focus ring."""
    painter.setOpacity(1)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.setPen(QPen(theme.colour("accent"), 2))
    painter.drawRoundedRect(box.adjusted(1, 1, -1, -1), radius, radius)
