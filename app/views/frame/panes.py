"""Three panes side by side. In a narrow window the outer two overlay the middle one, one at a time."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, Qt, Slot
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QWidget

from app.settings.theme import LIVE_WIDTH, OVERLAY_BELOW, SIDEBAR_WIDTH, Theme

WIDTHS = {"sidebar": SIDEBAR_WIDTH, "live": LIVE_WIDTH}
LEFT = "sidebar"
GROWTH = 0.4


class Panes(QWidget):
    """Lays out the panes. Folding chosen in a wide window survives narrow ones."""

    def __init__(self, theme: Theme, middle: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        theme.changed.connect(self._lay_out)
        self._middle = middle
        self._sides: dict[str, QWidget] = {}
        self._folded: set[str] = set()
        self._over = ""
        middle.setParent(self)
        middle.installEventFilter(self)

    @property
    def narrow(self) -> bool:
        """Whether the window is too narrow for panes side by side."""
        return self.width() < OVERLAY_BELOW * self._growth

    def add(self, name: str, widget: QWidget) -> None:
        """Add a pane beside the middle one."""
        self._sides[name] = widget
        widget.setParent(self)
        self._lay_out()

    def shown(self, name: str) -> bool:
        """Whether the pane is visible now."""
        if name not in self._sides:
            return False
        return self._over == name if self.narrow else name not in self._folded

    def unfolded(self, name: str) -> bool:
        """Whether the pane is shown when there is room."""
        return name not in self._folded

    def set_folded(self, name: str, folded: bool) -> None:
        """Fold or unfold a pane."""
        if self.narrow:
            self._over = "" if folded else name
        elif folded:
            self._folded.add(name)
        else:
            self._folded.discard(name)
        self._lay_out()

    def prefer_folded(self, name: str, folded: bool) -> None:
        """Set whether a pane is folded when there is room."""
        (self._folded.add if folded else self._folded.discard)(name)
        self._lay_out()

    @Slot()
    def uncover(self) -> None:
        """Fold the pane that lies over the middle one; no effect if none does."""
        if self._over:
            self.set_folded(self._over, folded=True)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        # A press beside an overlaid pane closes it.
        if event.type() == QEvent.Type.MouseButtonPress:
            self.uncover()
        return False

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if self._over and event.key() == Qt.Key.Key_Escape:
            self.uncover()
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if not self.narrow:
            self._over = ""
        self._lay_out()

    @property
    def _growth(self) -> float:
        """Panes grow with the font, but less, so that the chat keeps its room."""
        return 1 + GROWTH * max(0, self._theme.percent - 100) / 100

    def _width_of(self, name: str) -> int:
        return round(WIDTHS[name] * self._growth)

    def _lay_out(self) -> None:
        left, right = 0, self.width()
        for name, widget in self._sides.items():
            shown, width = self.shown(name), self._width_of(name)
            widget.setVisible(shown)
            widget.setGeometry(0 if name == LEFT else self.width() - width, 0, width, self.height())
            if shown and not self.narrow:
                left, right = (width, right) if name == LEFT else (left, right - width)
            if shown and self.narrow:
                widget.raise_()
        self._middle.setGeometry(left, 0, right - left, self.height())
