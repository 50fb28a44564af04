"""Who holds the memory of each device and how the rows are split: bars, and the same in words under them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from app.live import DeviceMap, Split
from app.theme import INSIDE, Theme
from app.views.gauges import Part, ShareBar
from core.sizes import format_memory


def parts_of(device: DeviceMap) -> list[Part]:
    """The holders of a device's memory in the order of the bar. `other` is left out while it is not known."""
    weights = ("resident", "weights") if device.kind == "gpu" else ("cpu", "weights")
    known = [
        (*weights, device.weights, False),
        ("kv_cache", "KV cache", device.kv_cache, False),
        ("ok", "workspace", device.workspace, False),
        ("streamed", "staging", device.staging, False),
        ("other", "others", device.other or 0, True),
    ]
    return [Part(token, size, f"{name} {format_memory(size)}", hatched) for token, name, size, hatched in known if size]


def parts_of_split(split: Split) -> list[Part]:
    """The shares of rows in the order of the bar."""
    named = (
        ("resident", "in VRAM", split.resident),
        ("streamed", "streamed", split.streamed),
        ("cpu", "CPU", split.cpu),
    )
    return [Part(token, share, f"{name} {share:.0%}") for token, name, share in named if share >= 0.0005]


class LabelledBar(QWidget):
    """A name, a bar, and the bar in words, each with a square of its colour."""

    def __init__(self, theme: Theme, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._name = QLabel(self)
        self._name.setTextFormat(Qt.TextFormat.PlainText)
        self._name.setWordWrap(True)
        self._bar = ShareBar(theme, name, self)
        self._words = QLabel(self)
        self._words.setWordWrap(True)
        self._words.setTextFormat(Qt.TextFormat.RichText)
        self._shown: tuple[Part, ...] = ()
        self._rest = ""
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(INSIDE)
        for widget in (self._name, self._bar, self._words):
            column.addWidget(widget)
        self._name.setText(name)
        theme.changed.connect(self._on_theme)
        self._on_theme()

    @property
    def words(self) -> str:
        """What stands under the bar."""
        return ", ".join([*(part.words for part in self._shown), *([self._rest] if self._rest else [])])

    def show_parts(self, name: str, parts: Sequence[Part], total: float, rest: str = "") -> None:
        """`rest`: words for what no part holds."""
        self._name.setText(name)
        self._bar.show_parts(parts, total)
        if (tuple(parts), rest) != (self._shown, self._rest):
            self._shown, self._rest = tuple(parts), rest
            self._write()

    def _write(self) -> None:
        squares = [(getattr(self._theme.colours, part.token), part.words) for part in self._shown]
        if self._rest:
            squares.append((self._theme.colours.border, self._rest))
        words = [f'<span style="color:{colour}">■</span>&nbsp;{_unbroken(text)}' for colour, text in squares]
        self._words.setText("&nbsp; ".join(words))

    def _on_theme(self) -> None:
        self._name.setFont(self._theme.font())
        self._words.setFont(self._theme.font("small"))
        self._words.setStyleSheet(f"color: {self._theme.colours.muted};")
        self._write()


def _unbroken(text: str) -> str:
    """A name and its figure stay on one line."""
    return escape(text).replace(" ", "&nbsp;")


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
        """The devices from the top."""
        while len(self.bars) < len(devices):
            bar = LabelledBar(self._theme, devices[len(self.bars)].name, self)
            self._column.addWidget(bar)
            self.bars.append(bar)
        for bar in self.bars[len(devices) :]:
            bar.hide()
        for bar, device in zip(self.bars, devices, strict=False):
            total = "" if device.total is None else f" · {format_memory(device.total)}"
            rest = f"free {'n/a' if device.free is None else format_memory(device.free)}"
            bar.show_parts(f"{device.name}{total}", parts_of(device), float(device.total or 0), rest)
            bar.show()
