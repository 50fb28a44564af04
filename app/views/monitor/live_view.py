"""The live view beside the chat: where the weights are, how rows are split, how fast it is, and why.

Shows the records it is given. Unknown figures read "n/a".
"""

from __future__ import annotations

from PySide6.QtCore import QObject, Qt, Signal, Slot
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from app.engine.app_state import Phase
from app.i18n import formatting
from app.i18n.formatting import format_rate
from app.i18n.translator import number, said, tr
from app.monitor.bottleneck import Explanation
from app.monitor.live_records import Outlook, Wish, idle_devices, with_sample
from app.monitor.telemetry import Sample, Sampler
from app.monitor.telemetry_nvml import GpuSample
from app.settings.theme import GROUP, INSIDE, RELATED, Theme
from app.views.controls.controls import Pane
from app.views.controls.scroll_pane import ScrollPane
from app.views.monitor.gauges import Figure, SpeedLine
from app.views.monitor.memory_view import LabelledBar, MemoryView, parts_of_split
from app.views.monitor.what_if import WhatIf
from core.events import ExpertShares, Stats

SPEEDS = (
    ("tok_s", "Writing", "Tokens per second, now"),
    ("predicted", "Predicted", "Tokens per second that the plan expects"),
    ("ttft", "First token", "Time from the question to the first token"),
    ("prompt", "Reading the prompt", "Tokens per second while the prompt is read"),
    ("context", "Context", "Tokens of the context in use"),
    (
        "experts",
        "Experts",
        "Of the experts that tokens use: computed on the card where they lie, or copied to it first",
    ),
)
MACHINE = (
    ("cpu", "CPU", "Use of all cores, by all programs"),
    ("ram", "RAM", "Memory in use, by all programs"),
    ("disk", "Disk", "Read from the disk, by all programs"),
    ("gpu", "GPU", "Use of the graphics card"),
    ("vram", "VRAM", "Graphics memory in use, by all programs"),
    ("link", "Link", "To the graphics card / back from it"),
    ("power", "Power", "What the graphics card draws, and its limit"),
    ("heat", "Temperature", "Graphics card, else processor"),
)


class Telemetry(QObject):
    """The sampler as a Qt object. `sampled(Sample)` is emitted in this object's thread, and never after `stop`."""

    sampled = Signal(object)
    _taken = Signal(object)

    def __init__(self, interval_s: float = 1.0, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._sampler = Sampler(self._taken.emit, interval_s)
        self._runs = False
        self._taken.connect(self._on_taken)

    def start(self) -> None:
        """Start sampling."""
        self._runs = True
        self._sampler.start()

    def stop(self) -> None:
        """Stop sampling and join the thread."""
        self._runs = False
        self._sampler.stop()

    @Slot(object)
    def _on_taken(self, sample: Sample) -> None:
        # A sample may still be queued when its receivers are gone.
        if self._runs:
            self.sampled.emit(sample)


class LiveView(Pane):
    """The pane of live figures.

    Signals: `wished(Wish)`, to be answered by `what_if.show_answer(Outlook)`; `applied(Wish)` to re-plan.
    """

    wished = Signal(object)
    applied = Signal(object)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, "side", ("left",), parent)
        self.setAccessibleName(self.tr("Live view"))
        self._outlook: Outlook | None = None
        self._phase: Phase = "empty"
        self._sample: Sample | None = None
        self.memory = MemoryView(theme, self)
        self.decode = LabelledBar(theme, self.tr("Writing"), self)
        self.prefill = LabelledBar(theme, self.tr("Reading the prompt"), self)
        self.line = SpeedLine(theme, self)
        self.speeds = {key: Figure(theme, self.tr(name), self.tr(tip), self) for key, name, tip in SPEEDS}
        self.machine = {key: Figure(theme, self.tr(name), self.tr(tip), self) for key, name, tip in MACHINE}
        self.reason, self.why = QLabel(self), QLabel(self)
        self.what_if = WhatIf(theme, self)
        self.what_if.wished.connect(self.wished)
        self.what_if.applied.connect(self.applied)
        self._headings: list[QLabel] = []
        self._lay_out()
        theme.changed.connect(self._on_theme)
        self._on_theme()
        self.speeds["experts"].hide()
        self.show_outlook(None)
        self.show_why(None)

    def show_outlook(self, outlook: Outlook | None, context_limit: int = 0, vram_share: float = 1.0) -> None:
        """Show the plan in force, None without a model. `context_limit`: the model's own, in tokens."""
        self._outlook = outlook
        predicted = outlook.decode_tok_s if outlook else None
        self.line.set_predicted(predicted)
        words = tr("{} tokens/s").format(formatting.expected(predicted)) if predicted else formatting.unknown()
        self.speeds["predicted"].show_value(words)
        self._show_split()
        self._show_memory()
        self._show_reason()
        now = Wish(outlook.context, outlook.format, vram_share, outlook.kv) if outlook else None
        has_gpu = outlook is not None and any(device.kind == "gpu" for device in outlook.devices)
        self.what_if.set_now(now, context_limit, has_gpu)

    def show_phase(self, phase: Phase) -> None:
        """Tell why there is no plan, if there is none."""
        if phase != self._phase:
            self._phase = phase
            self._show_reason()

    def show_stats(self, stats: Stats | None) -> None:
        """Show the reply's figures; None if there are none."""
        self.line.add(stats.tok_s if stats else None)
        known = stats or Stats()
        self.speeds["tok_s"].show_value(_per_second(known.tok_s))
        self.speeds["ttft"].show_value(formatting.seconds(known.ttft_s))
        self.speeds["prompt"].show_value(_per_second(known.prompt_tok_s))
        limit = known.context_limit
        self.speeds["context"].show_value(formatting.of(known.context_used, limit) if limit else formatting.unknown())
        self.speeds["experts"].setVisible(known.experts is not None)
        if known.experts is not None:
            self.speeds["experts"].show_value(_experts(known.experts))

    @Slot(object)
    def show_sample(self, sample: Sample) -> None:
        """Show a reading of the machine."""
        self._sample = sample
        card = sample.gpus[0] if sample.gpus else None
        for key, value in machine_words(sample, card).items():
            self.machine[key].show_value(value)
        self._show_memory()
        self.line.update()

    def show_why(self, why: Explanation | None) -> None:
        """Explain what limits the speed and what would help; None hides the text."""
        self.why.setVisible(why is not None)
        self.why.setText(f"{said(why.sentence)} {said(why.help)}" if why else "")

    def _show_reason(self) -> None:
        planless = {
            "empty": self.tr("No model is loaded."),
            "loading": self.tr("The model is being loaded."),
            "resting": self.tr("The model was unloaded, and comes back with the next question."),
        }
        elsewhere = self.tr("The model runs on another computer.")
        self.reason.setText(said(self._outlook.reason) if self._outlook else planless.get(self._phase, elsewhere))

    def _show_memory(self) -> None:
        sample = self._sample
        if self._outlook is None:
            self.memory.show_devices(idle_devices(sample) if sample else ())
        elif sample is None:
            self.memory.show_devices(self._outlook.devices)
        else:
            self.memory.show_devices([with_sample(device, sample) for device in self._outlook.devices])

    def _show_split(self) -> None:
        phases = (
            (self.decode, self.tr("Writing"), self._outlook.decode if self._outlook else None),
            (self.prefill, self.tr("Reading the prompt"), self._outlook.prefill if self._outlook else None),
        )
        for bar, name, split in phases:
            bar.show_parts(name, parts_of_split(split) if split else (), 1.0, "" if split else formatting.unknown())

    def _lay_out(self) -> None:
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(GROUP, 12, GROUP, GROUP)
        column.setSpacing(RELATED)
        for label in (self.reason, self.why):
            label.setWordWrap(True)
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setIndent(0)
        sections: tuple[tuple[str, tuple[QWidget, ...]], ...] = (
            (self.tr("Memory"), (self.memory,)),
            (self.tr("Who computes"), (self.decode, self.prefill, self.reason)),
            (self.tr("Speed"), (self.line, self._table(self.speeds), self.why)),
            (self.tr("Machine"), (self._table(self.machine),)),
            (self.tr("What if"), (self.what_if,)),
        )
        for words, widgets in sections:
            heading = QLabel(words)
            self._headings.append(heading)
            column.addWidget(heading)
            for widget in widgets:
                column.addWidget(widget)
            column.addSpacing(RELATED)
        column.addStretch(1)
        area = ScrollPane(self._theme, self.tr("Live view"), self)
        area.setWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(1, 0, 0, 0)
        whole.addWidget(area)

    def _table(self, figures: dict[str, Figure]) -> QWidget:
        table = QWidget()
        column = QVBoxLayout(table)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        for figure in figures.values():
            column.addWidget(figure)
        return table

    @Slot()
    def _on_theme(self) -> None:
        small = self._theme.font("small")
        small.setWeight(small.Weight.DemiBold)
        for heading in self._headings:
            heading.setFont(small)
            heading.setStyleSheet(f"color: {self._theme.colours.muted};")
        for label, token in ((self.reason, "muted"), (self.why, "text")):
            label.setFont(self._theme.font())
            label.setStyleSheet(f"color: {getattr(self._theme.colours, token)}; padding-top: {INSIDE}px;")
        self.update()


def _experts(shares: ExpertShares) -> str:
    there = tr("{} on the card").format(formatting.percent(100 * shares.on_card))
    copied = formatting.percent(100 * shares.copied)
    return f"{there}, {tr('{} copied').format(copied)}" if round(100 * shares.copied) else there


def _per_second(rate: float | None) -> str:
    return formatting.unknown() if rate is None else tr("{} tokens/s").format(formatting.rate(rate))


def machine_words(sample: Sample, card: GpuSample | None) -> dict[str, str]:
    """Format the machine's figures, keyed like MACHINE."""
    known = card or GpuSample(0, "")
    heat = known.temperature_c if known.temperature_c is not None else sample.cpu_temperature_c
    return {
        "cpu": formatting.percent(sample.cpu_percent),
        "ram": _of(sample.ram_used, sample.ram_total),
        "disk": _rate(sample.disk_read_bytes_s),
        "gpu": formatting.percent(known.busy_percent),
        "vram": _of(known.vram_used, known.vram_total),
        "link": _link(known.link_in_bytes_s, known.link_out_bytes_s),
        "power": _power(known.power_w, known.power_limit_w),
        "heat": formatting.unknown() if heat is None else f"{heat:.0f} °C",
    }


def _of(used: int | None, total: int | None) -> str:
    if used is None or total is None:
        return formatting.unknown()
    return formatting.of_memory(used, total)


def _rate(bytes_s: float | None) -> str:
    return formatting.unknown() if bytes_s is None else format_rate(bytes_s)


def _link(into: float | None, out: float | None) -> str:
    if into is None or out is None:
        return formatting.unknown()
    return number(f"{into / 1e9:.1f} / {out / 1e9:.1f} GB/s")


def _power(watts: float | None, limit: float | None) -> str:
    if watts is None:
        return formatting.unknown()
    return f"{watts:.0f} W" if limit is None else tr("{} of {}").format(f"{watts:.0f}", f"{limit:.0f} W")
