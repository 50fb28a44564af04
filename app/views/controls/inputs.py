"""Combo box, check box, search field and text field in the theme's look, which the style's own signs do not follow."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QKeyEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QLineEdit, QPlainTextEdit, QStyleOptionComboBox, QWidget

from app.i18n.translator import tr
from app.settings.theme import BUTTON_RADIUS, INSIDE, LINE, RELATED, Colours, Theme

ARROW, ARROW_ROOM = 14, 24
BOX = 18


class ChoiceBox(QComboBox):
    """Combo box. The wheel scrolls the page instead of changing the value."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setStyleSheet(
            f"QComboBox::drop-down {{ border: 0; width: {ARROW_ROOM}px; }} QComboBox::down-arrow {{ image: none; }}"
        )

    def closed_text(self) -> str:
        """Return the text shown while the list is closed."""
        return self.currentText()

    def initStyleOption(self, option: QStyleOptionComboBox) -> None:
        super().initStyleOption(option)
        icon = 0 if option.currentIcon.isNull() else self.iconSize().width() + INSIDE
        room = self.width() - ARROW_ROOM - 2 * RELATED - icon
        option.currentText = self.fontMetrics().elidedText(self.closed_text(), Qt.TextElideMode.ElideRight, room)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        if not self.isEnabled():
            painter.setOpacity(0.4)
        arrow = self._theme.pixmap("chevron-down", "muted", ARROW, self.devicePixelRatioF())
        painter.drawPixmap(self.width() - ARROW - RELATED, (self.height() - ARROW) // 2, arrow)


class TickBox(QCheckBox):
    """Check box."""

    def __init__(self, theme: Theme, words: str, parent: QWidget | None = None) -> None:
        super().__init__(words, parent)
        self._theme = theme

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        width = BOX + RELATED + metrics.horizontalAdvance(self.text()) + INSIDE
        return QSize(width, max(BOX, metrics.height()) + 2 * INSIDE)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if not self.isEnabled():
            painter.setOpacity(0.4)
        focused, usual = ("text", "accent") if self.isChecked() else ("accent", "muted")
        edge, line = (focused, 2) if self.hasFocus() else (usual, 1)
        box = QRectF(line / 2, (self.height() - BOX + line) / 2, BOX - line, BOX - line)
        painter.setPen(QPen(self._theme.colour(edge), line))
        painter.setBrush(self._theme.colour("accent" if self.isChecked() else "raised"))
        painter.drawRoundedRect(box, INSIDE, INSIDE)
        if self.isChecked():
            tick = self._theme.pixmap("check", "on_accent", BOX - 4, self.devicePixelRatioF())
            painter.drawPixmap(2, (self.height() - BOX) // 2 + 2, tick)
        painter.setPen(self._theme.colour("text"))
        words = self.rect().adjusted(BOX + RELATED, 0, 0, 0)
        painter.drawText(words, Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextShowMnemonic, self.text())

    def hitButton(self, place: object) -> bool:
        """Accept a press anywhere on the widget."""
        return True


class SearchBox(QLineEdit):
    """Search field with the theme's icons."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._sign = self.addAction(theme.icon("search", "muted"), QLineEdit.ActionPosition.LeadingPosition)
        self._clear = self.addAction(theme.icon("close", "muted"), QLineEdit.ActionPosition.TrailingPosition)
        self._clear.setToolTip(tr("Clear"))
        self._clear.triggered.connect(self.clear)
        self._clear.setVisible(False)
        self.textChanged.connect(self._on_text)
        theme.changed.connect(self._on_theme)

    def _on_text(self, text: str) -> None:
        self._clear.setVisible(bool(text))

    def _on_theme(self) -> None:
        self._sign.setIcon(self._theme.icon("search", "muted"))
        self._clear.setIcon(self._theme.icon("close", "muted"))


class TextBox(QPlainTextEdit):
    """Multi-line plain text field."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        theme.changed.connect(self._on_theme)
        self._on_theme()

    def _on_theme(self) -> None:
        c = self._theme.colours
        self.setStyleSheet(
            f"QPlainTextEdit {{ background: {c.raised}; color: {c.text}; border: {LINE}px solid {c.border};"
            f" border-radius: {BUTTON_RADIUS}px; padding: {INSIDE}px; selection-background-color: {c.selection};"
            f" selection-color: {c.text}; }} QPlainTextEdit:focus {{ border-color: {c.accent}; }}"
        )


def sends(event: QKeyEvent, enter_sends: bool) -> bool:
    """Whether this press of Enter sends a text: with Ctrl always, with Shift never, alone if `enter_sends`."""
    modifiers = event.modifiers()
    if event.key() not in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
        return False
    if modifiers & Qt.KeyboardModifier.ControlModifier:
        return True
    return enter_sends and not modifiers & Qt.KeyboardModifier.ShiftModifier


def list_style(c: Colours) -> str:
    """Return the style sheet of a list at the side of a dialog."""
    return (
        f"QListWidget {{ background: transparent; outline: none; }}"
        f"QListWidget::item {{ padding: {RELATED - 1}px {RELATED}px; margin: 1px {RELATED}px; "
        f"border-radius: {BUTTON_RADIUS}px; color: {c.text}; border: 1px solid transparent; }}"
        f"QListWidget::item:hover {{ background: {c.hover}; }}"
        f"QListWidget::item:selected {{ background: {c.tint}; color: {c.text}; }}"
        f"QListWidget::item:focus {{ border: 1px solid {c.accent}; }}"
    )
