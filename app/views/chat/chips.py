"""Attached files as chips: name, pages and tokens. A press opens the text; a cross removes the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QRectF, Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QPushButton, QWidget

from app.i18n.translator import tr
from app.settings.theme import BUTTON_RADIUS, COLUMN_WIDTH, EDGE, INSIDE, RELATED, TARGET, Theme
from app.views.chat.pictures import small_picture
from app.views.controls.controls import IconButton

WIDEST = 480


@dataclass(frozen=True)
class ChipWords:
    """Contents of a chip: the file's name, its figures or reading progress, and the picture if it is one."""

    name: str
    figures: str
    tip: str = ""
    picture: bytes = b""


class Chip(QWidget):
    """One file.

    Signals: `opened(place)`; `removed(place)`.
    """

    opened = Signal(int)
    removed = Signal(int)

    def __init__(self, theme: Theme, place: int, words: ChipWords, removable: bool, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme, self._place = theme, place
        self._words = QPushButton(self)
        self._words.setFlat(True)
        self._words.setFont(theme.font("small"))
        self._words.setIcon(small_picture(words.picture) if words.picture else theme.icon("log", "muted"))
        self._words.setStyleSheet(
            f"QPushButton {{ border: 1px solid transparent; background: transparent; color: {theme.colours.text};"
            f" text-align: left; padding: 0 {INSIDE}px; }}"
            f"QPushButton:focus {{ border-color: {theme.colours.accent}; border-radius: {BUTTON_RADIUS}px; }}"
        )
        self._words.setAccessibleName(f"{words.name}, {words.figures}")
        self._words.setToolTip(words.tip or words.name)
        self._words.clicked.connect(self._on_opened)
        self._remove = IconButton(theme, "close", tr("Remove"), self) if removable else None
        if self._remove is not None:
            self._remove.clicked.connect(self._on_removed)
        self._fit(words)

    def _fit(self, words: ChipWords) -> None:
        metrics = self._words.fontMetrics()
        figures = f"  {words.figures}" if words.figures else ""
        cross = TARGET if self._remove is not None else 0
        room = WIDEST - cross - 4 * RELATED - metrics.horizontalAdvance(figures)
        name = metrics.elidedText(words.name, Qt.TextElideMode.ElideMiddle, max(80, room))
        self._words.setText((name + figures).replace("&", "&&"))
        width = self._words.sizeHint().width() + RELATED
        self._words.setGeometry(0, 0, width, TARGET)
        if self._remove is not None:
            self._remove.setGeometry(width, 0, TARGET, TARGET)
        self.resize(width + cross, TARGET)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("border"), 1))
        painter.setBrush(self._theme.colour("raised"))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), BUTTON_RADIUS, BUTTON_RADIUS)

    def _on_opened(self) -> None:
        self.opened.emit(self._place)

    def _on_removed(self) -> None:
        self.removed.emit(self._place)


class ChipRow(QWidget):
    """A row of chips that wraps to as many lines as needed.

    Signals: `opened(place)`; `removed(place)`.
    """

    opened = Signal(int)
    removed = Signal(int)

    def __init__(self, theme: Theme, parent: QWidget | None = None, *, removable: bool = False) -> None:
        super().__init__(parent)
        self._theme, self._removable = theme, removable
        self._shown: tuple[ChipWords, ...] = ()
        self._chips: list[Chip] = []

    def show_chips(self, words: Sequence[ChipWords]) -> None:
        """Replace the chips."""
        if tuple(words) != self._shown:
            self._shown = tuple(words)
            self._make()

    def measure(self, width: int, *, right: bool = False) -> int:
        """Lay out the chips within this width, right-aligned if `right`, and return the height."""
        lines: list[list[Chip]] = [[]]
        for chip in self._chips:
            if lines[-1] and _length([*lines[-1], chip]) > width:
                lines.append([])
            lines[-1].append(chip)
        for number, line in enumerate(lines):
            left = max(0, width - _length(line)) if right else 0
            for chip in line:
                chip.move(left, number * (TARGET + INSIDE))
                left += chip.width() + INSIDE
        return len(lines) * (TARGET + INSIDE) if self._chips else 0

    def _make(self) -> None:
        for chip in self._chips:
            chip.hide()
            chip.deleteLater()
        made = [Chip(self._theme, place, words, self._removable, self) for place, words in enumerate(self._shown)]
        for chip in made:
            chip.opened.connect(self.opened)
            chip.removed.connect(self.removed)
            chip.show()
        self._chips = made


class ComposerChips(ChipRow):
    """The chips above the composer: as wide as it, and hidden when there are none."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent, removable=True)
        theme.changed.connect(self._on_theme)
        self.setAccessibleName(tr("Attached files"))
        self.hide()

    def show_chips(self, words: Sequence[ChipWords]) -> None:
        super().show_chips(words)
        self._fit()
        self.setVisible(bool(words))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def measure(self, width: int, *, right: bool = False) -> int:
        column = min(COLUMN_WIDTH, width - 2 * EDGE)
        height = super().measure(column)
        for chip in self._chips:
            chip.move(chip.x() + (width - column) // 2, chip.y() + INSIDE)
        return height + INSIDE

    def _fit(self) -> None:
        height = self.measure(self.width())
        if height != self.height():
            self.setFixedHeight(height)

    def _on_theme(self) -> None:
        self._make()
        self._fit()


def _length(chips: Sequence[Chip]) -> int:
    return sum(chip.width() + INSIDE for chip in chips) - INSIDE
