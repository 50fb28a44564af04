"""Memory by device and the split of rows, as bars with legends."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QFontMetrics, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

from app.i18n import formatting
from app.i18n.formatting import format_memory
from app.i18n.translator import tr
from app.monitor.live_records import DeviceMap, Split
from app.settings.theme import INSIDE, Theme
from app.views.monitor.gauges import Part, ShareBar

SQUARE, COLUMN_GAP = 8, 12


def parts_of(device: DeviceMap) -> list[Part]:
    """Return the parts of a device's bar. `other` is omitted if unknown."""
    known = [
        ("resident" if device.kind == "gpu" else "cpu", device.weights, tr("weights {}"), False),
        ("kv_cache", device.kv_cache, tr("KV cache {}"), False),
        ("ok", device.workspace, tr("workspace {}"), False),
        ("streamed", device.staging, tr("staging {}"), False),
        ("other", device.other or 0, tr("others {}"), True),
    ]
    return [
        Part(token, size, words.format(format_memory(size)), hatched) for token, size, words, hatched in known if size
    ]


def parts_of_split(split: Split) -> list[Part]:
    """Return the parts of a split's bar."""
    named = (
        ("resident", split.resident, tr("in VRAM {}")),
        ("streamed", split.streamed, tr("streamed {}")),
        ("cpu", split.cpu, tr("CPU {}")),
    )
    return [
        Part(token, share, words.format(formatting.percent(100 * share)))
        for token, share, words in named
        if share >= 0.0005
    ]


class Legend(QWidget):
    """Labels with coloured squares, in as many columns as fit."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._entries: tuple[tuple[str, str], ...] = ()
        self._columns = [0]
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_entries(self, entries: Sequence[tuple[str, str]]) -> None:
        """Set the (colour token, words) pairs."""
        self._entries = tuple(entries)
        self.setAccessibleName(", ".join(words for _, words in entries))
        self.fit()

    def fit(self) -> None:
        """Set the height to that of the rows."""
        self._columns = self._fitting()
        rows = -(-len(self._entries) // len(self._columns))
        self.setFixedHeight(max(1, rows) * self._line())
        self.update()

    def _line(self) -> int:
        return QFontMetrics(self._theme.font("small")).height() + 2

    def _fitting(self) -> list[int]:
        """Return the widths of the most columns that fit, at least one."""
        metrics = QFontMetrics(self._theme.font("small"))
        widths = [SQUARE + 6 + metrics.horizontalAdvance(words) + COLUMN_GAP for _, words in self._entries]
        for count in (3, 2):
            columns = [max(widths[at::count], default=0) for at in range(count)]
            if sum(columns) - COLUMN_GAP <= self.width():
                return columns
        return [self.width()]

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.fit()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self._theme.font("small"))
        columns, line = self._columns, self._line()
        for at, (token, words) in enumerate(self._entries):
            row, column = divmod(at, len(columns))
            left, top = sum(columns[:column]), row * line
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._theme.colour(token))
            painter.drawRoundedRect(QRectF(left, top + (line - SQUARE) / 2, SQUARE, SQUARE), 2, 2)
            painter.setPen(self._theme.colour("muted"))
            room = QRectF(left + SQUARE + 6, top, self.width() - left, line)
            painter.drawText(room, Qt.AlignmentFlag.AlignVCenter, words)


class LabelledBar(QWidget):
    """A name, a bar, and its legend."""

    def __init__(self, theme: Theme, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._name = QLabel(self)
        self._name.setTextFormat(Qt.TextFormat.PlainText)
        self._name.setWordWrap(True)
        self._bar = ShareBar(theme, name, self)
        self._legend = Legend(theme, self)
        self._shown: tuple[Part, ...] = ()
        self._rest = ""
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(INSIDE)
        for widget in (self._name, self._bar, self._legend):
            column.addWidget(widget)
        self._name.setText(name)
        theme.changed.connect(self._on_theme)
        self._on_theme()

    @property
    def words(self) -> str:
        """The text of the legend."""
        return ", ".join([*(part.words for part in self._shown), *([self._rest] if self._rest else [])])

    def show_parts(self, name: str, parts: Sequence[Part], total: float, rest: str = "") -> None:
        """Set the name and the parts. `rest`: words for what no part covers."""
        self._name.setText(name)
        self._bar.show_parts(parts, total)
        if (tuple(parts), rest) != (self._shown, self._rest):
            self._shown, self._rest = tuple(parts), rest
            squares = [(part.token, part.words) for part in parts]
            self._legend.show_entries([*squares, *([("border", rest)] if rest else [])])

    def _on_theme(self) -> None:
        self._name.setFont(self._theme.font())
        self._legend.fit()


class MemoryView(QWidget):
    """One labelled bar per device."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.bars: list[LabelledBar] = []
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(12)

    def show_devices(self, devices: Sequence[DeviceMap]) -> None:
        """Show the devices from top to bottom."""
        while len(self.bars) < len(devices):
            bar = LabelledBar(self._theme, devices[len(self.bars)].name, self)
            self._column.addWidget(bar)
            self.bars.append(bar)
        for bar in self.bars[len(devices) :]:
            bar.hide()
        for bar, device in zip(self.bars, devices, strict=False):
            name = tr("Memory (RAM)") if device.kind == "cpu" else device.name
            total = "" if device.total is None else f" · {format_memory(device.total)}"
            rest = tr("free {}").format(formatting.unknown() if device.free is None else format_memory(device.free))
            bar.show_parts(f"{name}{total}", parts_of(device), float(device.total or 0), rest)
            bar.show()
