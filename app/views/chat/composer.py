"""The composer: a rounded text field that grows, a button to send or stop, and the context ring."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QEvent, QMimeData, QObject, QRectF, Qt, Signal
from PySide6.QtGui import QFocusEvent, QImage, QKeyEvent, QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QPlainTextEdit, QWidget

from app.engine.app_state import State
from app.i18n import formatting
from app.i18n.translator import tr
from app.settings.theme import CARD_RADIUS, COLUMN_WIDTH, EDGE, INSIDE, RELATED, TARGET, Theme
from app.views.controls.controls import IconButton, RoundButton
from app.views.controls.inputs import sends

MOST = 0.4
"""Largest share of the window's height that the composer takes."""
PAD = 10


class ContextRing(QWidget):
    """A thin ring showing how much of the context is used, with a tool tip."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._used = self._limit = 0
        self.setFixedSize(20, 20)
        self.set_use(0, 0)

    def set_use(self, used: int, limit: int) -> None:
        """Set the tokens used and the context's size, 0 if unknown."""
        self._used, self._limit = used, limit
        words = (
            tr("Context: {} tokens used").format(formatting.of(used, limit))
            if limit
            else tr("Context: {}").format(formatting.unknown())
        )
        self.setToolTip(words)
        self.setAccessibleName(words)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        box = QRectF(3, 3, 14, 14)
        painter.setPen(QPen(self._theme.colour("border"), 2))
        painter.drawEllipse(box)
        share = min(1.0, self._used / self._limit) if self._limit else 0
        if share:
            pen = QPen(self._theme.colour("warn" if share > 0.85 else "accent"), 2)
            pen.setCapStyle(Qt.PenCapStyle.RoundCap)
            painter.setPen(pen)
            painter.drawArc(box, 90 * 16, -round(max(share, 0.03) * 360 * 16))


def files_in(data: QMimeData) -> list[Path]:
    """Return the local files among dropped or pasted data."""
    return [Path(url.toLocalFile()) for url in data.urls() if url.isLocalFile()]


class MessageEdit(QPlainTextEdit):
    """A text field that hands over files instead of inserting their paths.

    Signals: `files(list[Path])`; `picture(QImage)` that was pasted.
    """

    files = Signal(object)
    picture = Signal(object)

    def canInsertFromMimeData(self, source: QMimeData) -> bool:
        return bool(files_in(source)) or source.hasImage() or super().canInsertFromMimeData(source)

    def insertFromMimeData(self, source: QMimeData) -> None:
        if files := files_in(source):
            self.files.emit(files)
        elif source.hasImage() and not source.hasText():  # spreadsheets copy their cells as a picture as well
            self.picture.emit(QImage(source.imageData()))
        else:
            super().insertFromMimeData(source)


class Composer(QWidget):
    """The field for the user's message, with its buttons.

    Signals: `submitted(text)`; `stop_requested`; `recall_requested` (Up in an empty field); `attach_requested`;
    `files(list[Path])` dropped or pasted; `picture(QImage)` pasted.
    """

    submitted = Signal(str)
    stop_requested = Signal()
    recall_requested = Signal()
    attach_requested = Signal()
    files = Signal(object)
    picture = Signal(object)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._busy = self._wordless = False
        self.enter_sends = True
        self.edit = MessageEdit(self)
        self.edit.files.connect(self.files)
        self.edit.picture.connect(self.picture)
        self.edit.setFrameShape(QPlainTextEdit.Shape.NoFrame)
        self.edit.setPlaceholderText(tr("Ask anything"))
        self.edit.setAccessibleName(tr("Message"))
        self.edit.setTabChangesFocus(True)
        self.edit.document().setDocumentMargin(0)
        self.edit.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.edit.installEventFilter(self)
        self.edit.textChanged.connect(self._on_text)
        self.ring = ContextRing(theme, self)
        self._attach = IconButton(theme, "paperclip", tr("Attach files"), self)
        self._attach.clicked.connect(self.attach_requested)
        self._send = RoundButton(theme, "send", tr("Send"), self)
        self._send.clicked.connect(self._on_pressed)
        theme.changed.connect(self._on_theme)
        self._on_theme()
        self._on_text()

    def show_state(self, state: State) -> None:
        """Update the button and the context ring."""
        self.set_busy(state.busy_here)
        if state.stats and state.stats.context_limit and not state.elsewhere:
            self.ring.set_use(state.stats.context_used, state.stats.context_limit)
        else:
            self.ring.set_use(0, state.model.context if state.model and not state.begun else 0)

    def set_busy(self, busy: bool) -> None:
        """Turn the send button into a stop button while a reply is awaited, and back."""
        if busy != self._busy:
            self._busy = busy
            self._send.set_icon("stop" if busy else "send", tr("Stop") if busy else tr("Send"))
            self._on_text()

    def set_wordless(self, allowed: bool) -> None:
        """Allow or forbid questions without text; attached pictures make them meaningful."""
        self._wordless = allowed
        self._on_text()

    def take_focus(self) -> None:
        """Give the text field keyboard focus."""
        self.edit.setFocus()

    @property
    def text(self) -> str:
        """The text as typed."""
        return self.edit.toPlainText()

    def set_text(self, text: str) -> None:
        """Replace the text."""
        self.edit.setPlainText(text)
        self.edit.moveCursor(self.edit.textCursor().MoveOperation.End)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.edit and isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            return self._on_key(event)
        if watched is self.edit and isinstance(event, QFocusEvent):
            self.update()
        return False

    def _on_key(self, event: QKeyEvent) -> bool:
        if sends(event, self.enter_sends):
            self._submit()
            return True
        if (
            event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
            and event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        ):
            # A plain paragraph instead of Qt's line separator, which would reach the model.
            self.edit.textCursor().insertText("\n")
            return True
        if event.key() == Qt.Key.Key_Up and not self.edit.toPlainText():
            self.recall_requested.emit()
            return True
        return False

    def _on_pressed(self) -> None:
        if self._busy:
            self.stop_requested.emit()
        else:
            self._submit()

    def _submit(self) -> None:
        text = self.edit.toPlainText()
        if (text.strip() or self._wordless) and not self._busy:
            self.edit.clear()
            self.submitted.emit(text)

    def _on_text(self) -> None:
        self._send.setEnabled(self._busy or self._wordless or bool(self.edit.toPlainText().strip()))
        self._fit()

    def _fit(self) -> None:
        line = self.edit.fontMetrics().lineSpacing()
        lines = max(1, int(self.edit.document().size().height()))
        window = self.window().height() if self.window() is not None else 780
        most = max(3 * line, round(window * MOST) - 2 * PAD)
        height = min(lines * line + 4, most)
        scroll = (
            Qt.ScrollBarPolicy.ScrollBarAsNeeded if lines * line + 4 > most else Qt.ScrollBarPolicy.ScrollBarAlwaysOff
        )
        self.edit.setVerticalScrollBarPolicy(scroll)
        total = max(height, 28) + 2 * PAD + RELATED + INSIDE
        if total != self.height():
            self.setFixedHeight(total)
        self._lay_out()

    def _box(self) -> QRectF:
        width = min(COLUMN_WIDTH, self.width() - 2 * EDGE)
        return QRectF((self.width() - width) / 2, INSIDE, width, self.height() - RELATED - INSIDE)

    def _lay_out(self) -> None:
        box = self._box().toRect()
        line, inner = self.edit.fontMetrics().lineSpacing(), box.height() - 2 * PAD
        # Beside one line the buttons are in its middle, beside more at the end.
        bottom = box.center().y() + 15 if inner < 2 * line else box.bottom() - 8
        self._attach.move(box.left() + RELATED, bottom - TARGET - 1)
        self._send.move(box.right() - 32 - 7, bottom - 31)
        self.ring.move(box.right() - 32 - 7 - 20 - RELATED, bottom - 25)
        text = max(inner, line)
        top = box.top() + PAD + max(0, (inner - line - 4) // 2 if inner < 2 * line else 0)
        left = RELATED + TARGET + INSIDE
        self.edit.setGeometry(box.left() + left, top, box.width() - left - 32 - 20 - 4 * RELATED, text)

    def _on_theme(self) -> None:
        self.edit.setFont(self._theme.font("message"))
        self.edit.setStyleSheet(f"background: transparent; color: {self._theme.colours.text};")
        self._fit()
        self.update()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._lay_out()
        self._fit()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("accent" if self.edit.hasFocus() else "border"), 1))
        painter.setBrush(self._theme.colour("raised"))
        painter.drawRoundedRect(self._box().adjusted(0.5, 0.5, -0.5, -0.5), CARD_RADIUS, CARD_RADIUS)
