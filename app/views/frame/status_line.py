"""The status line: the engine's phase, time to first token, context, CPU and memory."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QFontMetrics, QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QWidget

from app.engine.app_state import State
from app.i18n import formatting
from app.i18n.translator import tr
from app.settings.theme import GROUP, INSIDE, RELATED, STATUS_LINE, Theme
from app.views.controls.controls import ElidedLabel, Pane
from core.events import Stats

PHASES = {
    "empty": "No model",
    "loading": "Loading",
    "ready": "Ready",
    "resting": "Resting: the model comes back with the next question",
    "reading": "Reading the prompt",
    "replying": "Writing",
    "calling": "Using a tool",
}


class Reading(QWidget):
    """A name and a figure in a place of fixed width: "CPU  23 %"."""

    def __init__(self, theme: Theme, name: str, widest: str, tip: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme, self._name, self._widest = theme, name, widest
        self.setToolTip(tip)
        self.show_text(formatting.unknown())
        theme.changed.connect(self._fit)
        self._fit()

    def show_text(self, text: str) -> None:
        """Set the figure."""
        self._text = text
        name = f"{self._name} {text}"
        if name != self.accessibleName():
            self.setAccessibleName(name)
            self.update()

    def _fit(self) -> None:
        metrics = QFontMetrics(self._theme.font("small"))
        self._split = metrics.horizontalAdvance(self._name) + 6
        self.setFixedSize(self._split + metrics.horizontalAdvance(self._widest) + 2, STATUS_LINE - 1)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(self._theme.font("small"))
        painter.setPen(self._theme.colour("muted"))
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.drawText(self.rect(), middle, self._name)
        painter.setPen(self._theme.colour("text"))
        painter.drawText(self.rect().adjusted(self._split, 0, 0, 0), middle, self._text)


class StatusLine(Pane):
    """Shows a `State` and the machine's figures."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, "window", ("top",), parent)
        self._theme = theme
        self.setFixedHeight(STATUS_LINE)
        self._phase = ElidedLabel(self)
        self._first = Reading(
            theme, tr("First token"), "888.8 s", tr("Time from the question to the first token"), self
        )
        self._context = Reading(theme, tr("Context"), "88,888 of 88,888", tr("Tokens of the context in use"), self)
        self._cpu = Reading(theme, tr("CPU"), "100 %", tr("Use of all cores"), self)
        self._ram = Reading(theme, tr("RAM"), "888.8 of 888.8 GB", tr("Memory in use, by all programs"), self)
        row = QHBoxLayout(self)
        row.setContentsMargins(GROUP, 1, RELATED, 0)
        row.setSpacing(GROUP)
        row.addWidget(self._phase, 1)
        for reading in (self._first, self._context, self._cpu, self._ram):
            row.addWidget(reading)
        theme.changed.connect(self._on_theme)
        self._on_theme()

    def show_state(self, state: State) -> None:
        """Show the phase and the reply's figures."""
        self._phase.say("{}", _words(state))
        known = state.figures or Stats()
        self._first.show_text(formatting.seconds(known.ttft_s))
        limit = 0 if state.elsewhere else known.context_limit
        self._context.show_text(formatting.of(known.context_used, limit) if limit else formatting.unknown())

    def show_machine(self, cpu_percent: float | None, ram_used: float | None, ram_total: float | None) -> None:
        """Show CPU in percent and memory in bytes; None = unknown."""
        self._cpu.show_text(formatting.percent(cpu_percent))
        if ram_used is None or ram_total is None:
            self._ram.show_text(formatting.unknown())
        else:
            self._ram.show_text(formatting.of_memory(ram_used, ram_total))

    def _on_theme(self) -> None:
        self._phase.setFont(self._theme.font("small"))
        self._phase.setStyleSheet(f"color: {self._theme.colours.muted}; padding-left: {INSIDE}px;")


def _words(state: State) -> str:
    if state.candidate:
        return tr("Another model is being checked")
    if state.elsewhere and state.phase != "loading":
        return tr("Another conversation is being answered")
    if state.phase == "reading" and state.prefill and state.prefill.total:
        return f"{tr(PHASES['reading'])}, {formatting.percent(100 * state.prefill.done / state.prefill.total)}"
    return tr(PHASES[state.phase])
