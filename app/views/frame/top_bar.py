"""The bar above the chat: the model and its facts, its split, and the speed. Changing figures move nothing."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QFont, QFontMetrics, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QAbstractButton, QHBoxLayout, QSizePolicy, QWidget

from app.engine.app_state import State, host_of, name_of
from app.i18n import formatting
from app.i18n.translator import tr
from app.settings.theme import BUTTON_RADIUS, INSIDE, RELATED, TARGET, TOP_BAR, Theme
from app.views.controls.controls import IconButton, Pane, paint_focus
from core.events import Loaded

STRIP_FROM = 800
"""Narrowest window, in pixels, with the split; below, the model's name needs the room. The live view shows it too."""


class ModelButton(QAbstractButton):
    """A button with the loaded model, its format and context; opens the model dialog."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._name, self._facts = tr("No model"), ""
        self.setFixedHeight(TARGET + INSIDE)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self.show_model(tr("No model"), "")

    def show_model(self, name: str, facts: str) -> None:
        """Set the name, and the facts shown in a muted colour."""
        self._name, self._facts = name, facts
        self.setAccessibleName(f"{tr('Model')}: {name} {facts}".strip())
        self.setToolTip(tr("Choose a model (Ctrl+M)"))
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(self._name_width() + self._facts_width() + 20 + 3 * RELATED, self.height())

    def minimumSizeHint(self) -> QSize:
        return QSize(120, self.height())

    def _name_width(self) -> int:
        return QFontMetrics(self._bold()).horizontalAdvance(self._name)

    def _facts_width(self) -> int:
        return QFontMetrics(self._theme.font()).horizontalAdvance(self._facts) + (RELATED if self._facts else 0)

    def _bold(self) -> QFont:
        font = self._theme.font()
        font.setWeight(font.Weight.DemiBold)
        return font

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self.underMouse() or self.isDown():
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._theme.colour("border" if self.isDown() else "hover"))
            painter.drawRoundedRect(self.rect(), BUTTON_RADIUS, BUTTON_RADIUS)
        room = self.width() - 20 - 2 * RELATED
        bold = self._bold()
        painter.setFont(bold)
        painter.setPen(self._theme.colour("text"))
        name = QFontMetrics(bold).elidedText(self._name, Qt.TextElideMode.ElideMiddle, room)
        middle = Qt.AlignmentFlag.AlignVCenter
        box = self.rect().adjusted(RELATED, 0, 0, 0)
        painter.drawText(box, middle, name)
        taken = QFontMetrics(bold).horizontalAdvance(name) + RELATED
        painter.setFont(self._theme.font())
        painter.setPen(self._theme.colour("muted"))
        facts = QFontMetrics(self._theme.font()).elidedText(self._facts, Qt.TextElideMode.ElideRight, room - taken)
        painter.drawText(box.adjusted(taken, 0, 0, 0), middle, facts)
        size = 16
        arrow = self._theme.pixmap("chevron-down", "muted", size, self.devicePixelRatioF())
        painter.drawPixmap(self.width() - size - 6, (self.height() - size) // 2, arrow)
        if self.hasFocus():
            paint_focus(painter, self._theme, QRectF(self.rect()))


class SplitStrip(QWidget):
    """Where the weights are, as a bar in the devices' colours, with a tool tip."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self.shares: tuple[tuple[str, float], ...] = ()
        """(token, share) pairs that add up to 1; empty if nothing is loaded."""
        self.setFixedSize(140, 8)
        self.set_shares(())

    def set_shares(self, shares: tuple[tuple[str, float], ...]) -> None:
        """Set the (token, share) pairs, which add up to 1; empty if nothing is loaded."""
        self.shares = shares
        names = {
            "resident": tr("in graphics memory"),
            "streamed": tr("streamed over the link"),
            "cpu": tr("computed by the CPU"),
        }
        words = ", ".join(f"{formatting.percent(100 * share)} {names[token]}" for token, share in shares if share > 0)
        self.setToolTip(tr("Weights: {}").format(words or formatting.unknown()))
        self.setAccessibleName(self.toolTip())
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._theme.colour("hover"))
        painter.drawRoundedRect(QRectF(self.rect()), 4, 4)
        left = 0.0
        for token, share in self.shares:
            width = share * self.width()
            painter.setBrush(self._theme.colour(token))
            # Clipped to the rounded bar: only the outer ends are round.
            painter.save()
            painter.setClipRect(QRectF(left, 0, width, 8))
            painter.drawRoundedRect(QRectF(self.rect()), 4, 4)
            painter.restore()
            left += width


class SpeedLabel(QWidget):
    """A figure with its unit in a place of fixed width."""

    def __init__(self, theme: Theme, widest: str, name: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme, self._widest = theme, widest
        self._text = formatting.unknown()
        self._name = name
        self.setToolTip(name)
        theme.changed.connect(self._fit)
        self._fit()
        self.show_text(formatting.unknown())

    def show_text(self, text: str) -> None:
        """Set the figure."""
        if text != self._text or not self.accessibleName():
            self._text = text
            self.setAccessibleName(f"{self._name}: {text}")
            self.update()

    def _fit(self) -> None:
        metrics = QFontMetrics(self._theme.font())
        self.setFixedSize(metrics.horizontalAdvance(self._widest) + INSIDE, metrics.height() + INSIDE)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(self._theme.font())
        painter.setPen(self._theme.colour("text"))
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, self._text)


class TopBar(Pane):
    """The top bar.

    Signals: `model_pressed`; `sidebar_pressed`; `live_pressed`; `menu_pressed`.
    """

    model_pressed = Signal()
    sidebar_pressed = Signal()
    live_pressed = Signal()
    menu_pressed = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, "window", ("bottom",), parent)
        self.setFixedHeight(TOP_BAR)
        self._sidebar = IconButton(theme, "sidebar", tr("Conversations (Ctrl+B)"), self)
        self.model = ModelButton(theme, self)
        self.strip = SplitStrip(theme, self)
        self.speed = SpeedLabel(theme, tr("{} tokens/s").format("8,888"), tr("Speed now"), self)
        self._live = IconButton(theme, "live", tr("Live view (Ctrl+L)"), self)
        self.menu = IconButton(theme, "more", tr("Menu"), self)
        row = QHBoxLayout(self)
        row.setContentsMargins(RELATED, 0, RELATED, 1)
        row.setSpacing(INSIDE)
        row.addWidget(self._sidebar)
        row.addWidget(self.model)
        row.addStretch(1)
        row.addWidget(self.strip)
        row.addSpacing(RELATED)
        row.addWidget(self.speed)
        row.addSpacing(RELATED)
        row.addWidget(self._live)
        row.addWidget(self.menu)
        self._sidebar.clicked.connect(self.sidebar_pressed)
        self._live.clicked.connect(self.live_pressed)
        self.menu.clicked.connect(self.menu_pressed)
        self.model.clicked.connect(self.model_pressed)

    def show_state(self, state: State) -> None:
        """Show the current model and speed."""
        model = state.model
        if model is not None:
            self.model.show_model(model.name, _facts(model, host_of(state.source)))
        elif state.phase == "loading":
            self.model.show_model(name_of(state.source), tr("loading"))
        elif state.phase == "resting":
            self.model.show_model(name_of(state.source), tr("resting"))
        else:
            self.model.show_model(tr("No model"), "")
        speed = state.figures.tok_s if state.figures else None
        self.speed.show_text(tr("{} tokens/s").format(formatting.rate(speed)))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.strip.setVisible(self.width() >= STRIP_FROM)


def _facts(model: Loaded, host: str) -> str:
    """Describe a local model by format and context, a remote one by its host and context."""
    facts = [host or model.format_name, formatting.tokens(model.context) if model.context else ""]
    return " · ".join(fact for fact in facts if fact)
