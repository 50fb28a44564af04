"""Colours, fonts and measures of the window as tokens. The only module that knows their values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from PySide6.QtCore import QByteArray, QObject, QRectF, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QIcon, QPainter, QPalette, QPixmap
from PySide6.QtSvg import QSvgRenderer

from app.system.resources import icon_source

Mode = Literal["system", "light", "dark"]
MODES: tuple[Mode, ...] = ("system", "light", "dark")
FontRole = Literal["base", "message", "small", "code", "heading1", "heading2", "heading3", "title"]

INSIDE, RELATED, GROUP, EDGE = 4, 8, 16, 24
"""Spacing in pixels: inside an item, between related items, between groups, at the edges."""
CARD_RADIUS, BUTTON_RADIUS, LINE = 10, 6, 1
TARGET, ICON = 28, 20
TOP_BAR, STATUS_LINE = 44, 28
SIDEBAR_WIDTH, LIVE_WIDTH, COLUMN_WIDTH = 260, 320, 760
WINDOW_SIZE, WINDOW_MINIMUM, OVERLAY_BELOW = (1180, 780), (720, 480), 960
BASE_POINTS, LINE_HEIGHT, FLUSH_MS = 10.5, 1.5, 25


@dataclass(frozen=True)
class Colours:
    """A colour scheme: every colour of the window by its meaning, as #RRGGBB."""

    window: str
    side: str
    raised: str
    border: str
    text: str
    muted: str
    accent: str
    on_accent: str
    danger: str
    resident: str
    streamed: str
    cpu: str
    kv_cache: str
    other: str
    ok: str
    warn: str
    tint: str
    """Background of the user's messages."""
    hover: str
    code: str
    """Background of code."""
    selection: str


LIGHT = Colours(
    window="#FFFFFF",
    side="#F5F6F8",
    raised="#FFFFFF",
    border="#E1E4EA",
    text="#1B1E24",
    muted="#5E6572",
    accent="#2F62E9",
    on_accent="#FFFFFF",
    danger="#C7293A",
    resident="#087A6E",
    streamed="#A15C00",
    cpu="#6B4DE6",
    kv_cache="#2F62E9",
    other="#8A909C",
    ok="#187A3E",
    warn="#A15C00",
    tint="#EDF1FC",
    hover="#ECEEF2",
    code="#F6F7F9",
    selection="#C9D7FB",
)
DARK = Colours(
    window="#16181D",
    side="#1C1F26",
    raised="#252932",
    border="#343A46",
    text="#E7E9EE",
    muted="#9BA3B1",
    accent="#7DA2FF",
    on_accent="#12151B",
    danger="#FF7B86",
    resident="#34C7B5",
    streamed="#F2A93B",
    cpu="#A690FF",
    kv_cache="#7DA2FF",
    other="#6D7480",
    ok="#4CCB7F",
    warn="#F2A93B",
    tint="#232A3A",
    hover="#2A2F39",
    code="#1C1F26",
    selection="#35497F",
)

TEXT_ON = (
    ("text", ("window", "side", "raised", "tint", "hover", "code", "selection")),
    ("muted", ("window", "side", "raised", "tint", "hover", "code")),
    ("accent", ("window", "side", "raised", "tint", "code")),
    ("on_accent", ("accent",)),
    *((name, ("window", "side", "raised", "code")) for name in ("danger", "resident", "streamed", "cpu", "ok", "warn")),
)
"""Text colours with their backgrounds. Tests require a contrast of 4.5 for each pair."""


def contrast(one: str, other: str) -> float:
    """Return the WCAG contrast ratio of two colours, 1 to 21."""
    high, low = sorted((_luminance(QColor(one)), _luminance(QColor(other))), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: QColor) -> float:
    parts = (colour.redF(), colour.greenF(), colour.blueF())
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


class Theme(QObject):
    """The colour scheme and font size in use.

    Signal: `changed` when colours or sizes have changed.
    """

    changed = Signal()

    def __init__(self, mode: Mode = "system", percent: int = 100) -> None:
        super().__init__()
        self._mode: Mode = mode
        self._percent = percent
        self._system_font = QGuiApplication.font()
        hints = QGuiApplication.styleHints()
        hints.colorSchemeChanged.connect(self._on_system_scheme)
        self._apply()

    @property
    def colours(self) -> Colours:
        """The colours in use."""
        return DARK if self.dark else LIGHT

    @property
    def dark(self) -> bool:
        """Whether the dark scheme is in use."""
        if self._mode != "system":
            return self._mode == "dark"
        return QGuiApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark

    def colour(self, token: str) -> QColor:
        """Return the colour of a token of `Colours`."""
        return QColor(getattr(self.colours, token))

    @property
    def percent(self) -> int:
        """The font size in percent, 80-160."""
        return self._percent

    def grown(self, width: int) -> int:
        """Scale a width that holds text by the font size, never below its normal value."""
        return round(width * max(100, self._percent) / 100)

    def choose(self, mode: Mode, percent: int) -> None:
        """Apply the user's scheme and font size (80-160 %)."""
        if (mode, percent) != (self._mode, self._percent):
            self._mode, self._percent = mode, max(80, min(160, percent))
            self._apply()
            self.changed.emit()

    def font(self, role: FontRole = "base") -> QFont:
        """Return the font of a role at the user's size."""
        family = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont) if role == "code" else self._system_font
        font = QFont(family)
        font.setPointSizeF(_POINTS[role] * self._percent / 100)
        if role in ("heading1", "heading2", "heading3", "title"):
            font.setWeight(QFont.Weight.DemiBold)
        if role != "code":
            # Tabular figures: numbers can change without moving anything.
            font.setFeature(QFont.Tag("tnum"), 1)
        return font

    def pixmap(self, name: str, token: str, size: int = ICON, ratio: float = 2.0) -> QPixmap:
        """Render an icon in a token's colour, `size` logical pixels square."""
        return _tinted(name, getattr(self.colours, token), size, ratio)

    def icon(self, name: str, token: str = "text") -> QIcon:
        """Return an icon for menus and standard buttons."""
        return QIcon(self.pixmap(name, token))

    def _on_system_scheme(self) -> None:
        if self._mode == "system":
            self._apply()
            self.changed.emit()

    def _apply(self) -> None:
        app = QGuiApplication.instance()
        if not isinstance(app, QGuiApplication):
            return
        app.setFont(self.font())
        app.setPalette(palette(self.colours))
        if hasattr(app, "setStyleSheet"):
            app.setStyleSheet(stylesheet(self.colours))


_POINTS: dict[FontRole, float] = {
    "base": BASE_POINTS,
    "message": BASE_POINTS + 1,
    "small": BASE_POINTS - 1,
    "code": BASE_POINTS - 0.5,
    "heading1": (BASE_POINTS + 1) * 1.4,
    "heading2": (BASE_POINTS + 1) * 1.25,
    "heading3": (BASE_POINTS + 1) * 1.1,
    "title": BASE_POINTS * 1.7,
}


@cache
def _tinted(name: str, colour: str, size: int, ratio: float) -> QPixmap:
    renderer = QSvgRenderer(QByteArray(icon_source(name).replace("currentColor", colour).encode()))
    pixels = round(size * ratio)
    pixmap = QPixmap(pixels, pixels)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    renderer.render(painter, QRectF(0, 0, pixels, pixels))
    painter.end()
    pixmap.setDevicePixelRatio(ratio)
    return pixmap


def palette(c: Colours) -> QPalette:
    """Build the Qt palette for everything that the style draws."""
    result = QPalette()
    role = QPalette.ColorRole
    pairs = {
        role.Window: c.window,
        role.WindowText: c.text,
        role.Base: c.window,
        role.AlternateBase: c.side,
        role.Text: c.text,
        role.Button: c.raised,
        role.ButtonText: c.text,
        role.BrightText: c.danger,
        role.ToolTipBase: c.raised,
        role.ToolTipText: c.text,
        role.PlaceholderText: c.muted,
        role.Highlight: c.selection,
        role.HighlightedText: c.text,
        role.Link: c.accent,
        role.LinkVisited: c.accent,
        role.Accent: c.accent,
        role.Light: c.raised,
        role.Midlight: c.hover,
        role.Mid: c.border,
        role.Dark: c.border,
        role.Shadow: c.border,
    }
    for key, value in pairs.items():
        result.setColor(key, QColor(value))
    for key in (role.WindowText, role.Text, role.ButtonText):
        result.setColor(QPalette.ColorGroup.Disabled, key, QColor(c.muted))
    return result


def stylesheet(c: Colours) -> str:
    """Build the application's style sheet from the tokens."""
    return f"""
QToolTip {{ background: {c.raised}; color: {c.text}; border: {LINE}px solid {c.border}; padding: {INSIDE}px; }}
QMenu {{ background: {c.raised}; color: {c.text}; border: {LINE}px solid {c.border};
    border-radius: {BUTTON_RADIUS}px; padding: {INSIDE}px; }}
QMenu::item {{ padding: 6px {EDGE}px 6px {RELATED}px; border-radius: {INSIDE}px; }}
QMenu::item:selected {{ background: {c.hover}; }}
QMenu::item:disabled {{ color: {c.muted}; }}
QMenu::icon {{ padding-left: {RELATED}px; }}
QMenu::separator {{ height: {LINE}px; background: {c.border}; margin: {INSIDE}px; }}
QPushButton {{ background: {c.raised}; color: {c.text}; border: {LINE}px solid {c.border};
    border-radius: {BUTTON_RADIUS}px; padding: 0 12px; min-height: {TARGET}px; outline: none; }}
QPushButton:hover {{ background: {c.hover}; }}
QPushButton:pressed {{ background: {c.border}; }}
QPushButton:focus {{ border-color: {c.accent}; }}
QPushButton:disabled {{ color: {c.muted}; }}
QPushButton[primary="true"] {{ background: {c.accent}; color: {c.on_accent}; border-color: {c.accent}; }}
QPushButton[primary="true"]:focus {{ border: {2 * LINE}px solid {c.text}; padding: 0 11px;
    min-height: {TARGET - 2}px; }}
QPushButton[primary="true"]:disabled {{ background: {c.hover}; color: {c.muted}; border-color: {c.border}; }}
QLineEdit, QPlainTextEdit {{ placeholder-text-color: {c.muted}; }}
QLineEdit, QSpinBox, QDoubleSpinBox, QComboBox {{ background: {c.raised}; color: {c.text};
    border: {LINE}px solid {c.border}; border-radius: {BUTTON_RADIUS}px; padding: 0 {RELATED}px;
    min-height: {TARGET}px; selection-background-color: {c.selection}; selection-color: {c.text}; }}
QLineEdit {{ padding: 0 {RELATED - 2}px; }} /* which adds 2 pixels of its own */
QLineEdit:focus, QSpinBox:focus, QDoubleSpinBox:focus, QComboBox:focus {{ border-color: {c.accent}; }}
QSplitter::handle {{ background: {c.border}; }}
QScrollBar:vertical {{ background: transparent; width: 12px; margin: 2px; }}
QScrollBar:horizontal {{ background: transparent; height: 12px; margin: 2px; }}
QScrollBar::handle {{ background: {c.border}; border-radius: 4px; min-height: {TARGET}px; min-width: {TARGET}px; }}
QScrollBar::handle:hover {{ background: {c.other}; }}
QScrollBar::add-line, QScrollBar::sub-line {{ width: 0; height: 0; }}
QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; }}
QDialogButtonBox {{ dialogbuttonbox-buttons-have-icons: 0; button-layout: 3; }} /* the default at the end */
QMessageBox QLabel#qt_msgbox_label {{ font-weight: 600; padding: {RELATED}px {GROUP}px 0 0; }}
QMessageBox QLabel#qt_msgbox_informativelabel {{ padding: 0 {GROUP}px {RELATED}px 0; }}
QSlider::groove:horizontal {{ height: 4px; border-radius: 2px; background: {c.border}; }}
QSlider::sub-page:horizontal {{ height: 4px; border-radius: 2px; background: {c.accent}; }}
QSlider::sub-page:horizontal:disabled {{ background: {c.border}; }}
QSlider::handle:horizontal {{ width: 14px; height: 14px; margin: -6px 0; border-radius: 8px;
    background: {c.raised}; border: {LINE}px solid {c.other}; }}
QSlider::handle:horizontal:hover {{ border-color: {c.accent}; }}
QSlider::handle:horizontal:focus {{ border: 2px solid {c.accent}; width: 12px; height: 12px; }}
QProgressBar {{ background: {c.hover}; border: 0; border-radius: 2px; max-height: 4px; min-height: 4px; }}
QProgressBar::chunk {{ background: {c.accent}; border-radius: 2px; }}
"""
