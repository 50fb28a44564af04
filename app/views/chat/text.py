"""The two kinds of text in a message: prose that wraps, and code with its language and a copy button.

Both take their full height, since the transcript scrolls instead, and load nothing that the text names.
"""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer, QUrl, Signal
from PySide6.QtGui import (
    QColor,
    QFontMetrics,
    QGuiApplication,
    QKeyEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QTextBlock,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextOption,
    QWheelEvent,
)
from PySide6.QtWidgets import QFrame, QLabel, QPlainTextEdit, QTextBrowser, QWidget

from app.i18n.translator import tr
from app.settings.theme import CARD_RADIUS, LINE_HEIGHT, RELATED, FontRole, Theme
from app.text.highlight import Highlighter
from app.text.markdown_stream import LONGEST_LINE, Prose
from app.views.chat.prose import QUOTE_LEVEL, STEP, ProseWriter, indent_of
from app.views.controls.controls import IconButton
from app.views.controls.focus_ring import FocusRing

HEADER, SCROLL_BAR = 32, 16
BAR = 3
"""Width of the bar beside a quote, in pixels."""
COPIED_MS = 1500
LONGEST_DOCUMENT = 8000


class _Document(QTextDocument):
    """A document that loads nothing: images named by a model are fetched neither from the network nor from disk."""

    def loadResource(self, kind: int, name: QUrl | str) -> object:
        return None


class TextView(QTextBrowser):
    """Read-only wrapped text that is as high as needed.

    Signal: `link(str)` when a link is pressed.
    """

    link = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        document = _Document(self)
        document.setUndoRedoEnabled(False)
        document.setDocumentMargin(0)
        document.setDefaultFont(theme.font("message"))
        self.setDocument(document)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        # Wrap at a given width instead of the widget's own, because the text is measured before it is placed.
        self.setLineWrapMode(QTextBrowser.LineWrapMode.FixedPixelWidth)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setOpenLinks(False)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextBrowserInteraction | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.viewport().setAutoFillBackground(False)
        self.setStyleSheet("background: transparent;")
        self.anchorClicked.connect(self._on_anchor)
        FocusRing(theme, self)

    def measure(self, width: int) -> int:
        """Wrap at this width and return the height."""
        if width != self.lineWrapColumnOrWidth():
            self.setLineWrapColumnOrWidth(width)
        return round(self.document().size().height() + 0.49)

    def loadResource(self, kind: int, name: QUrl | str) -> object:
        return None

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        # Page keys belong to the transcript.
        paging = (Qt.Key.Key_PageUp, Qt.Key.Key_PageDown, Qt.Key.Key_Home, Qt.Key.Key_End, Qt.Key.Key_Escape)
        if event.key() in paging and not event.modifiers():
            event.ignore()
            return
        super().keyPressEvent(event)

    def _on_anchor(self, address: QUrl) -> None:
        self.link.emit(address.toString())


class ProseView(TextView):
    """Markdown whose last run may still change."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.setAccessibleName(tr("Text"))
        self._writer = ProseWriter(theme)
        self._fixed = 0
        self._tail = Prose("")

    def commit(self, run: Prose) -> None:
        """Append a run that will not change again."""
        self._drop_tail()
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        self._writer.write(cursor, run.text, run.level)
        cursor.endEditBlock()
        self._fixed = self.document().characterCount() - 1

    @property
    def full(self) -> bool:
        """Whether to continue in another view: the cost of changing a document grows with its length."""
        return self._fixed > LONGEST_DOCUMENT

    def set_tail(self, tail: Prose) -> None:
        """Show the run that may still change, replacing the previous tail."""
        if tail == self._tail:
            return
        self._drop_tail()
        self._tail = tail
        if tail.text.strip():
            cursor = QTextCursor(self.document())
            cursor.beginEditBlock()
            self._writer.write(cursor, tail.text, tail.level)
            cursor.endEditBlock()

    def _drop_tail(self) -> None:
        self._tail = Prose("")
        if self.document().characterCount() - 1 > self._fixed:
            cursor = QTextCursor(self.document())
            cursor.setPosition(self._fixed)
            cursor.movePosition(QTextCursor.MoveOperation.End, QTextCursor.MoveMode.KeepAnchor)
            cursor.removeSelectedText()

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self.viewport())
        layout = self.document().documentLayout()
        block = self.cursorForPosition(event.rect().topLeft()).block()
        while block.isValid():
            box = layout.blockBoundingRect(block)
            if box.top() > event.rect().bottom():
                break
            self._paint_bars(painter, block, round(box.top()), round(box.height()))
            block = block.next()

    def _paint_bars(self, painter: QPainter, block: QTextBlock, top: int, height: int) -> None:
        quotes = block.blockFormat().property(QUOTE_LEVEL) or 0
        for level in range(int(quotes)):
            inside = round(indent_of(block.blockFormat())) - (level + 1) * STEP + RELATED
            from_right = block.textDirection() == Qt.LayoutDirection.RightToLeft
            left = self.viewport().width() - inside - BAR if from_right else inside
            painter.fillRect(left, top + 3, BAR, height, self._theme.colour("border"))


class PlainView(TextView):
    """Text shown exactly as typed."""

    def __init__(
        self, theme: Theme, role: FontRole = "message", token: str = "text", parent: QWidget | None = None
    ) -> None:
        super().__init__(theme, parent)
        self._form = QTextCharFormat()
        self._form.setFont(theme.font(role))
        self._form.setForeground(theme.colour(token))
        self._height = QFontMetrics(theme.font(role)).height() * LINE_HEIGHT / 1.25
        self._length = 0

    def set_text(self, text: str) -> None:
        """Show this text. A longer text than before is taken as its continuation and appended."""
        if len(text) < self._length:
            self.clear()
            self._length = 0
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        form = cursor.blockFormat()
        form.setLineHeight(self._height, form.LineHeightTypes.MinimumHeight.value)
        cursor.setBlockFormat(form)
        cursor.insertText(broken(text[self._length :]), self._form)
        self._length = len(text)

    def natural_width(self) -> int:
        """Return the width of the longest line."""
        metrics = QFontMetrics(self._form.font())
        lines = self.toPlainText().split("\n", 200)
        return max(metrics.horizontalAdvance(line[:400]) for line in lines) + 2


class _Code(QPlainTextEdit):
    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self.setReadOnly(True)
        self.setUndoRedoEnabled(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setFont(theme.font("code"))
        self.document().setDocumentMargin(0)
        self.setStyleSheet("background: transparent;")
        self.setTabStopDistance(4 * self.fontMetrics().horizontalAdvance(" "))
        FocusRing(theme, self)

    def wheelEvent(self, event: QWheelEvent) -> None:
        if (
            abs(event.angleDelta().x()) > abs(event.angleDelta().y())
            or event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        ):
            super().wheelEvent(event)
        else:
            event.ignore()


class CodeView(QWidget):
    """A block of code: a header with language and copy button, and lines that scroll sideways instead of wrapping."""

    def __init__(self, theme: Theme, language: str, level: int = 0, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.level = level
        self._source: list[str] = []
        self._tail = ""
        self._highlighter = Highlighter(language)
        self._formats: dict[str, QTextCharFormat] = {}
        self.edit = _Code(theme, self)
        self.edit.setAccessibleName(tr("Code, {}").format(language) if language else tr("Code"))
        self._name = QLabel(language or tr("text"), self)
        self._name.setFont(theme.font("small"))
        self._name.setStyleSheet(f"color: {theme.colours.muted};")
        self._copy = IconButton(theme, "copy", tr("Copy code"), self)
        self._copy.clicked.connect(self._on_copy)

    @property
    def source(self) -> str:
        """The code as written."""
        return "".join(self._source) + self._tail

    def append(self, lines: str) -> None:
        """Append whole lines, or a piece of an overlong one."""
        self._set_tail_text("")
        self._source.append(lines)
        cursor = QTextCursor(self.edit.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.beginEditBlock()
        for line in lines.splitlines(keepends=True):
            # A piece of an overlong line is shown as its own line; the source keeps it unbroken.
            for run, colour in self._highlighter.line(line if line.endswith("\n") else line + "\n"):
                cursor.insertText(run, self._format(colour))
        cursor.endEditBlock()

    def set_tail(self, text: str) -> None:
        """Show the line that is being written."""
        if text != self._tail:
            self._set_tail_text(text)

    def measure(self, width: int) -> int:
        """Return the height at this width."""
        document = self.edit.document()
        lines = document.blockCount()
        if lines > 1 and not document.lastBlock().text():
            lines -= 1
        wide = self.edit.document().idealWidth() > width - 24 if lines < 400 else True
        # Ask the editor for its line height: with fractional font sizes the font metrics give less.
        line = self.edit.blockBoundingRect(document.firstBlock()).height()
        return HEADER + round(lines * line + 0.49) + 12 + (SCROLL_BAR if wide else 0)

    def resizeEvent(self, event: object) -> None:
        self._name.setGeometry(12, 0, self.width() - 60, HEADER)
        self._copy.move(self.width() - self._copy.width() - 4, 2)
        self.edit.setGeometry(12, HEADER, self.width() - 16, self.height() - HEADER - 2)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("border"), 1))
        painter.setBrush(self._theme.colour("code"))
        painter.drawRoundedRect(
            self.rect().adjusted(0, 0, -1, -1).toRectF().translated(0.5, 0.5), CARD_RADIUS, CARD_RADIUS
        )

    def _set_tail_text(self, text: str) -> None:
        cursor = QTextCursor(self.edit.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.movePosition(QTextCursor.MoveOperation.StartOfBlock, QTextCursor.MoveMode.KeepAnchor)
        cursor.insertText(text[:LONGEST_LINE], self._format("text"))
        self._tail = text

    def _format(self, colour: str) -> QTextCharFormat:
        if colour not in self._formats:
            form = QTextCharFormat()
            form.setForeground(QColor(getattr(self._theme.colours, colour)))
            self._formats[colour] = form
        return self._formats[colour]

    def _on_copy(self) -> None:
        QGuiApplication.clipboard().setText(self.source.rstrip("\n"))
        self._copy.set_icon("check", tr("Copied"))
        QTimer.singleShot(COPIED_MS, self._copy, self._forget_copy)

    def _forget_copy(self) -> None:
        self._copy.set_icon("copy", tr("Copy code"))


def broken(text: str) -> str:
    """Break overlong lines, because laying one out could freeze the window."""
    if len(text) <= LONGEST_LINE:
        return text
    return "\n".join(
        "\n".join(line[at : at + LONGEST_LINE] for at in range(0, len(line), LONGEST_LINE))
        if len(line) > LONGEST_LINE
        else line
        for line in text.split("\n")
    )
