"""The graphics card page: whether the card is used, why not, and what is needed."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from app.gpu.state import GpuState
from app.gpu.words import page
from app.i18n.translator import tr
from app.settings.theme import EDGE, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.paragraph import Paragraph

SIZE = (520, 260)
STEPS = 1000


class GpuDialog(Dialog):
    """Shows a `GpuState`.

    Signal: `wished(id)` of a button: look, fetch, pause, try, remove, restart.
    """

    wished = Signal(str)

    def __init__(self, theme: Theme, state: GpuState, place: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._place = theme, place
        self.setWindowTitle(tr("Graphics card"))
        self.resize(*SIZE)
        self.headline = QLabel(self)
        self.headline.setFont(theme.font("heading2"))
        self.headline.setWordWrap(True)
        self.sentence = Paragraph(theme, "")
        self.details = Paragraph(theme, "", "muted")
        self.bar = QProgressBar(self)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName(tr("Progress"))
        self.buttons: dict[str, QPushButton] = {}
        self._row = QHBoxLayout()
        self._row.setSpacing(RELATED)
        self._close = QPushButton(tr("Close"), self)
        self._close.clicked.connect(self.reject)
        self._lay_out()
        self.show_state(state)

    @Slot(object)
    def show_state(self, state: GpuState) -> None:
        """Show a state. Buttons that stay keep keyboard focus."""
        shown = page(state, self._place)
        self.headline.setText(shown.headline)
        self.sentence.setText(shown.sentence)
        self.details.setText(shown.details)
        self.bar.setVisible(shown.share is not None)
        self.bar.setRange(0, STEPS)
        if shown.share is not None and shown.share >= 0:
            self.bar.setValue(round(shown.share * STEPS))
        if tuple(self.buttons) != tuple(wish for wish, _ in shown.buttons):
            self._make_buttons(shown.buttons)
        self._grow()

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    def _grow(self) -> None:
        """Become as high as the text needs."""
        if (layout := self.layout()) is not None:
            self.resize(self.width(), max(self.height(), layout.totalHeightForWidth(self.width())))

    def _make_buttons(self, buttons: tuple[tuple[str, str], ...]) -> None:
        for former in self.buttons.values():
            former.hide()
            former.deleteLater()
        self.buttons = {wish: self._button(wish, words) for wish, words in buttons}
        # The default button is rightmost, as in every dialog.
        for button in reversed(self.buttons.values()):
            self._row.addWidget(button)
        first = next(iter(self.buttons.values()), self._close)
        first.setFocus(Qt.FocusReason.OtherFocusReason)

    def _button(self, wish: str, words: str) -> QPushButton:
        button = QPushButton(words, self)
        button.setProperty("primary", "true" if wish in ("look", "fetch", "restart") else "false")
        button.setObjectName(wish)
        button.clicked.connect(self._on_pressed)
        return button

    def _on_pressed(self) -> None:
        self.wished.emit(self.sender().objectName())

    def _lay_out(self) -> None:
        self._row.addStretch(1)
        self._row.addWidget(self._close)
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(RELATED)
        for widget in (self.headline, self.sentence, self.bar, self.details):
            column.addWidget(widget)
        column.addStretch(1)
        column.addLayout(self._row)
