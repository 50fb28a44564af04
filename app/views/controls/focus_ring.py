"""A ring around a text or scrolled area that the Tab key has reached: such an area shows no keyboard focus itself."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, QRectF, Qt
from PySide6.QtGui import QFocusEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractScrollArea, QWidget

from app.settings.theme import INSIDE, Theme

BY_KEY = (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason)


class FocusRing(QWidget):
    """Lies over its area, and is seen while the area has focus by key; a press with the mouse needs no ring."""

    def __init__(self, theme: Theme, area: QAbstractScrollArea) -> None:
        super().__init__(area)
        self._theme, self._area = theme, area
        self._by_key = False  # kept while another window is in front
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.hide()
        area.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if isinstance(event, QFocusEvent) and event.type() != QEvent.Type.FocusAboutToChange:
            if event.gotFocus() and event.reason() != Qt.FocusReason.ActiveWindowFocusReason:
                self._by_key = event.reason() in BY_KEY
            self.setVisible(event.gotFocus() and self._by_key)
        if self.isVisible():
            self.setGeometry(self._area.rect())
            self.raise_()
        return False

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("accent"), 1))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), INSIDE, INSIDE)
