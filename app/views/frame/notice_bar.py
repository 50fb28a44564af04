"""Notices above the composer: what happened, the next step, and its button. Also the progress of a load."""

from __future__ import annotations

import time

from PySide6.QtCore import QRectF, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from app.engine.app_state import State, name_of
from app.i18n import formatting
from app.i18n.translator import tr
from app.notices.notices import Notice
from app.settings.theme import CARD_RADIUS, COLUMN_WIDTH, EDGE, GROUP, ICON, RELATED, Theme
from app.views.controls.controls import ElidedLabel, IconButton
from app.views.controls.tab_stops import holds_focus

TONES = {"info": ("info", "accent"), "warning": ("warning", "warn"), "error": ("warning", "danger")}
PHASES = {
    "start": "Starting the engine",
    "read": "Reading the model's description",
    "measure": "Measuring this computer",
    "convert": "Preparing the weights",
    "place": "Placing the weights",
    "weights": "Loading the weights",
    "tokenizer": "Reading the tokenizer",
    "ready": "Almost ready",
}
MOST = 3
FEW = 110
"""Longest text, in characters, with a button beside it."""
LEAVES_AFTER_MS = 15_000
"""How long a notice stays that only informs."""


class BarCard(QWidget):
    """A rounded surface with a border."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self.theme = theme
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self.theme.colour("border"), 1))
        painter.setBrush(self.theme.colour("side"))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), CARD_RADIUS, CARD_RADIUS)


class NoticeCard(BarCard):
    """One notice. If it only informs, it closes by itself, but not under the mouse or with the keyboard focus.

    Signals: `pressed(Notice)` for its button; `closed`.
    """

    pressed = Signal(object)
    closed = Signal()

    def __init__(self, theme: Theme, notice: Notice, parent: QWidget) -> None:
        super().__init__(theme, parent)
        self.notice = notice
        icon, token = TONES[notice.tone]
        sign = QLabel(self)
        sign.setPixmap(theme.pixmap(icon, token))
        sign.setFixedSize(ICON, ICON)
        words = QLabel(self)
        words.setTextFormat(Qt.TextFormat.PlainText)
        said = f"{notice.title}. {notice.sentence}".replace("?.", "?")
        words.setText(formatting.whole_rates(said))
        words.setWordWrap(True)
        words.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        row = QHBoxLayout(self)
        row.setContentsMargins(12, RELATED, RELATED, RELATED)
        row.setSpacing(RELATED)
        row.addWidget(sign, 0, Qt.AlignmentFlag.AlignVCenter)
        row.addWidget(words, 1)
        if notice.action:
            button = QPushButton(notice.button, self)
            button.clicked.connect(self._on_pressed)
            self._place_button(row, words, button)
        close = IconButton(theme, "close", tr("Close"), self)
        close.clicked.connect(self.closed)
        row.addWidget(close)
        self.setAccessibleName(said)
        self._leaves = QTimer(self, singleShot=True, interval=LEAVES_AFTER_MS)
        self._leaves.timeout.connect(self._on_time)
        if notice.tone == "info" and not notice.action:
            self._leaves.start()

    def _place_button(self, row: QHBoxLayout, words: QLabel, button: QPushButton) -> None:
        """Put the button beside few words, and below many, which would become a narrow column."""
        if len(words.text()) <= FEW:
            row.addWidget(button)
            return
        row.removeWidget(words)
        column = QVBoxLayout()
        column.setSpacing(RELATED)
        column.addWidget(words)
        column.addWidget(button, 0, Qt.AlignmentFlag.AlignLeft)
        row.addLayout(column, 1)

    @Slot()
    def _on_time(self) -> None:
        if self.underMouse() or holds_focus(self):
            self._leaves.start()
        else:
            self.closed.emit()

    def _on_pressed(self) -> None:
        self.pressed.emit(self.notice)


class LoadCard(BarCard):
    """The progress of a load, in words and as a bar.

    Signal: `cancelled`.
    """

    cancelled = Signal()

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(theme, parent)
        self._began = self._from = 0.0
        self._phase = ""
        self._words = ElidedLabel(self)
        self._left = QLabel(self)
        self._bar = QProgressBar(self)
        self._bar.setRange(0, 1000)
        self._bar.setTextVisible(False)
        self._bar.setAccessibleName(tr("Loading"))
        cancel = QPushButton(tr("Cancel"), self)
        cancel.clicked.connect(self.cancelled)
        top = QHBoxLayout()
        top.setSpacing(RELATED)
        top.addWidget(self._words, 1)
        top.addWidget(self._left)
        left = QVBoxLayout()
        left.setSpacing(6)
        left.addLayout(top)
        left.addWidget(self._bar)
        row = QHBoxLayout(self)
        row.setContentsMargins(GROUP, RELATED, RELATED, RELATED)
        row.setSpacing(GROUP)
        row.addLayout(left, 1)
        row.addWidget(cancel)
        self.hide()

    def show_state(self, state: State) -> None:
        """Show the load's progress; hide the card if there is no load."""
        loading = state.loading if state.candidate or state.phase == "loading" else None
        if loading is None:
            self.hide()
            return
        if self.isHidden():
            self.show()
        if loading.phase != self._phase:
            self._phase, self._began, self._from = loading.phase, time.monotonic(), loading.fraction
        name = name_of(state.candidate or state.source)
        self._words.say(f"{tr(PHASES.get(loading.phase, loading.phase))} · {{}}", name)
        self._bar.setValue(round(loading.fraction * 1000))
        self._left.setText(f"{formatting.percent(loading.fraction * 100)}{self._remaining(loading.fraction)}")
        self._left.setStyleSheet(f"color: {self.theme.colours.muted};")

    def _remaining(self, fraction: float) -> str:
        """Estimate the remaining time at this phase's pace; empty if the phase reports no progress, like measuring."""
        spent, done = time.monotonic() - self._began, fraction - self._from
        if spent < 1.5 or done < 0.05:
            return ""
        return tr(", about {} s left").format(max(1, round(spent / done * (1 - fraction))))


class NoticeBar(QWidget):
    """A short stack of notices.

    Signals: `acted(Notice)` when a button is pressed; `load_cancelled`; `freed` when the notice with the keyboard focus
    goes.
    """

    acted = Signal(object)
    freed = Signal()
    load_cancelled = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.load = LoadCard(theme, self)
        self.load.cancelled.connect(self.load_cancelled)
        self._cards: list[NoticeCard] = []
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(EDGE, 0, EDGE, 0)
        self._column.setSpacing(RELATED)
        self._column.addWidget(self.load)
        self._settle()

    @property
    def notices(self) -> list[Notice]:
        """The notices shown, newest last."""
        return [card.notice for card in self._cards]

    def add(self, notice: Notice) -> None:
        """Show a notice. An equal one is replaced, and the oldest gives way."""
        for card in [card for card in self._cards if card.notice == notice] + self._cards[
            : max(0, len(self._cards) - MOST + 1)
        ]:
            self._remove(card)
        card = NoticeCard(self._theme, notice, self)
        card.pressed.connect(self._on_pressed)
        card.closed.connect(self._on_closed)
        self._cards.append(card)
        self._column.addWidget(card)
        self._settle()

    def withdraw(self, notice: Notice) -> None:
        """Remove a notice that no longer applies; no effect if it is not shown."""
        for card in [card for card in self._cards if card.notice == notice]:
            self._remove(card)

    def clear(self) -> None:
        """Remove all notices."""
        for card in list(self._cards):
            self._remove(card)

    def show_state(self, state: State) -> None:
        """Update the progress of a load."""
        self.load.show_state(state)
        self._settle()

    def _on_pressed(self, notice: Notice) -> None:
        self._on_closed()
        self.acted.emit(notice)

    def _on_closed(self) -> None:
        card = self.sender()
        if isinstance(card, NoticeCard):
            self._remove(card)

    def _remove(self, card: NoticeCard) -> None:
        if card in self._cards:
            self._cards.remove(card)
            if holds_focus(card):
                self.freed.emit()
            card.hide()
            card.deleteLater()
        self._settle()

    def _settle(self) -> None:
        shown = bool(self._cards) or not self.load.isHidden()
        side = max(EDGE, (self.width() - COLUMN_WIDTH) // 2)
        self._column.setContentsMargins(side, 0, side, RELATED if shown else 0)
        self.setVisible(shown)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._settle()
