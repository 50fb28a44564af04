"""The what-if sliders: context, formats, share of graphics memory. Shows the answer it is given."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QLabel, QPushButton, QSlider, QVBoxLayout, QWidget

from app.i18n import formatting
from app.monitor.live_records import Outlook, Wish
from app.settings.theme import INSIDE, RELATED, Theme
from app.views.controls.inputs import ChoiceBox
from app.views.monitor.memory_view import MemoryView
from core.spec import MIN_CONTEXT, format_named, kv_named

ASK_MS = 60
FORMATS = (("auto", "Automatic"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int4"))
KV_FORMATS = (("bf16", "Exact"), ("int8", "8 bits"))
STEPS_PER_DOUBLING = 2
FITS = {"yes": "Fits", "slow": "Fits, slow", "no": "Does not fit"}


class WhatIf(QWidget):
    """Asks for a plan as sliders move.

    Signals: `wished(Wish)` shortly after a change, to be answered by `show_answer`; `applied(Wish)`.
    """

    wished = Signal(object)
    applied = Signal(object)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._limit = MIN_CONTEXT
        self._now: Wish | None = None
        self._context_now = 0
        self._context = self._slider(self.tr("Context"))
        self._vram = self._slider(self.tr("Share of the graphics memory"))
        self._vram.setRange(0, 20)
        self._format = self._choice(self.tr("Weight format"), FORMATS)
        self._kv = self._choice(self.tr("KV cache"), KV_FORMATS)
        self._context_words, self._vram_words = QLabel(self), QLabel(self)
        self._verdict, self._manner = QLabel(self), QLabel(self)
        self._vram_words.setObjectName("vram")
        for label, name in ((self._verdict, "verdict"), (self._manner, "manner")):
            label.setObjectName(name)
            label.setWordWrap(True)
        self._memory = MemoryView(theme, self)
        self._apply = QPushButton(self.tr("Apply"), self)
        self._apply.clicked.connect(self._on_apply)
        self._delay = QTimer(self, singleShot=True, interval=ASK_MS)
        self._delay.timeout.connect(self._on_ask)
        self._lay_out()
        self._context.valueChanged.connect(self._on_change)
        self._vram.valueChanged.connect(self._on_change)
        self._format.currentIndexChanged.connect(self._on_change)
        self._kv.currentIndexChanged.connect(self._on_change)
        theme.changed.connect(self._on_theme)
        self._on_theme()
        self.set_now(None, 0, False)

    def set_now(self, now: Wish | None, context_limit: int, has_gpu: bool) -> None:
        """Set the plan in force; None without a model."""
        self._now = now
        self.setEnabled(now is not None)
        self._limit = max(MIN_CONTEXT, context_limit)
        self._vram.setEnabled(has_gpu)
        self._set_sliders(now or Wish(MIN_CONTEXT, "auto", 1.0))
        self._verdict.setText("" if now else self.tr("Load a model to try what would be."))
        self._memory.setVisible(False)
        self._manner.setVisible(False)
        self._show_words()

    def show_answer(self, answer: Outlook | None) -> None:
        """Show the outlook for the last wish; None if it is unknown."""
        self._memory.setVisible(answer is not None)
        if answer is None:
            self._verdict.setText(formatting.unknown())
            return
        words = self.tr("{}: about {} tokens/s with {}, {}.").format(
            self.tr(FITS[answer.fits]),
            formatting.expected(answer.decode_tok_s),
            answer.format,
            formatting.confidence(answer.confidence),
        )
        self._verdict.setText(words)
        self._memory.show_devices(answer.devices)
        self._apply.setEnabled(self.wish() != self._now and answer.fits != "no")
        self._manner.setText(self._manner_of(self.wish()))
        self._manner.setVisible(self._apply.isEnabled())

    def _manner_of(self, wish: Wish) -> str:
        """Describe what Apply will do."""
        assert self._now is not None
        if wish.format != self._now.format:
            return self.tr("The model is loaded again, for its other format.")
        if wish.context != self._now.context:
            return self.tr("The model is loaded again, for its other context.")
        if wish.kv != self._now.kv:
            return self.tr("The model is loaded again, for its other KV cache.")
        return self.tr("Weights only move: nothing is loaded again.")

    def wish(self) -> Wish:
        """Return the sliders' wish."""
        share = self._vram.value() / self._vram.maximum()
        return Wish(self._tokens(), format_named(self._format.currentData()), share, kv_named(self._kv.currentData()))

    def _tokens(self) -> int:
        # Steps of half a doubling; the last one is the model's own limit, whatever it is.
        if self._now is not None and self._context.value() == self._context_now:
            return min(self._now.context, self._limit)
        if self._context.value() == self._context.maximum():
            return self._limit
        whole, half = divmod(self._context.value(), STEPS_PER_DOUBLING)
        return MIN_CONTEXT * (1 << whole) * (3 if half else 2) // 2

    def _set_sliders(self, wish: Wish) -> None:
        for widget in (self._context, self._vram, self._format, self._kv):
            widget.blockSignals(True)
        steps = 0
        while self._step(steps) < self._limit:
            steps += 1
        self._context.setRange(0, steps)
        near = min(range(steps + 1), key=lambda step: abs(min(self._step(step), self._limit) - wish.context))
        self._context.setValue(near)
        self._context_now = near
        self._vram.setValue(round(wish.vram_share * self._vram.maximum()))
        self._format.setCurrentIndex([value for value, _ in FORMATS].index(wish.format))
        self._kv.setCurrentIndex([value for value, _ in KV_FORMATS].index(wish.kv))
        for widget in (self._context, self._vram, self._format, self._kv):
            widget.blockSignals(False)

    @staticmethod
    def _step(step: int) -> int:
        whole, half = divmod(step, STEPS_PER_DOUBLING)
        return MIN_CONTEXT * (1 << whole) * (3 if half else 2) // 2

    def _show_words(self) -> None:
        self._context_words.setText(formatting.tokens(self._tokens()) if self._now else formatting.unknown())
        share = formatting.percent(100 * self._vram.value() / self._vram.maximum())
        self._vram_words.setText(share if self._vram.isEnabled() else formatting.unknown())
        self._context.setAccessibleDescription(self._context_words.text())
        self._vram.setAccessibleDescription(self._vram_words.text())
        self._apply.setEnabled(False)

    @Slot()
    def _on_change(self) -> None:
        self._show_words()
        self._delay.start()

    @Slot()
    def _on_ask(self) -> None:
        if self._now is not None:
            self.wished.emit(self.wish())

    @Slot()
    def _on_apply(self) -> None:
        self._apply.setEnabled(False)
        self._manner.setVisible(False)
        self.applied.emit(self.wish())

    def _choice(self, name: str, values: Sequence[tuple[str, str]]) -> ChoiceBox:
        box = ChoiceBox(self._theme, self)
        box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        box.setMinimumContentsLength(6)
        box.setAccessibleName(name)
        for value, words in values:
            box.addItem(self.tr(words), value)
        return box

    def _slider(self, name: str) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal, self)
        slider.setAccessibleName(name)
        slider.setPageStep(1)
        slider.setMinimumHeight(24)
        return slider

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(INSIDE)
        column.addLayout(self._row(self.tr("Context"), self._context, self._context_words))
        column.addWidget(self._context)
        column.addLayout(self._row(self.tr("VRAM"), self._vram, self._vram_words))
        column.addWidget(self._vram)
        column.addLayout(self._row(self.tr("Format"), self._format, self._format))
        column.addLayout(self._row(self.tr("KV cache"), self._kv, self._kv))
        column.addSpacing(INSIDE)
        for widget in (self._verdict, self._memory, self._manner, self._apply):
            column.addWidget(widget)

    def _row(self, words: str, control: QWidget, right: QWidget) -> QHBoxLayout:
        name = QLabel(words, self)
        name.setBuddy(control)
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addWidget(name)
        row.addStretch(1)
        row.addWidget(right)
        return row

    @Slot()
    def _on_theme(self) -> None:
        self._verdict.setFont(self._theme.font())
