"""Parts of a turn: the row of actions, the in-place editor, and folded text."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QRectF, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

from app.conversations.attached import Excerpt
from app.i18n import formatting
from app.i18n.translator import tr
from app.settings.theme import CARD_RADIUS, GROUP, INSIDE, RELATED, TARGET, Theme
from app.views.chat.text import COPIED_MS, PlainView
from app.views.controls.controls import IconButton
from app.views.controls.inputs import sends
from app.views.controls.tab_stops import holds_focus

PAD = 12
FEWEST_LINES, MOST_LINES = 2, 14
"""Lines of the in-place editor, from which it scrolls."""


LASTING = frozenset(("previous", "next"))
"""The buttons beside the number of versions."""


class ActionRow(QWidget):
    """Copy, edit, regenerate, versions: drawn on hover and focus, always in the same place.

    Signal: `wished(action)`.
    """

    wished = Signal(str)

    def __init__(self, theme: Theme, actions: tuple[tuple[str, str, str], ...], parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        row = self._row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        self._buttons: dict[str, IconButton] = {}
        self._lasting = {*LASTING}
        """The buttons that are always drawn: users should see that there are other versions."""
        self._versions = QHBoxLayout()
        row.addLayout(self._versions)
        self._older = self._button("previous", "chevron-left", tr("Earlier version"), self._versions)
        self._count = QLabel(self)
        self._count.setFont(theme.font("small"))
        self._versions.addWidget(self._count)
        self._newer = self._button("next", "chevron-right", tr("Later version"), self._versions)
        for action, icon, name in actions:
            self._button(action, icon, name, row)
        self.setFixedHeight(TARGET)
        self.set_lively(False)

    def put_versions_last(self) -> None:
        """Move arrows and version number to the right of the actions."""
        self._row.removeItem(self._versions)
        self._row.addLayout(self._versions)

    def always_draw(self, action: str) -> None:
        """Draw a button also while the mouse is elsewhere."""
        self._lasting.add(action)
        self.set_lively(False)

    def set_versions(self, at: int, of: int) -> None:
        """Show version `at` of `of`; hidden if there is only one."""
        for widget in (self._older, self._count, self._newer):
            widget.setVisible(of > 1)
        self._count.setText(f"{at}/{of}")
        self._older.setEnabled(at > 1)
        self._newer.setEnabled(at < of)

    def set_lively(self, lively: bool) -> None:
        """Draw all buttons, or only the focused one."""
        for action, button in self._buttons.items():
            button.set_faint(not lively and action not in self._lasting)
        self._count.setStyleSheet(f"color: {self._theme.colours.muted};")

    def show_only(self, actions: set[str]) -> None:
        """Hide the actions that do not apply now. The keyboard focus stays in the row."""
        moved = any(holds_focus(button) for action, button in self._buttons.items() if action not in actions | LASTING)
        for action, button in self._buttons.items():
            if action not in LASTING:
                button.setVisible(action in actions)
        if moved and actions:
            next(button for action, button in self._buttons.items() if action in actions).setFocus()

    def copied(self) -> None:
        """Confirm a press on copy."""
        self._buttons["copy"].set_icon("check", tr("Copied"))
        QTimer.singleShot(COPIED_MS, self, self._forget_copied)

    def _forget_copied(self) -> None:
        self._buttons["copy"].set_icon("copy", tr("Copy"))

    def _button(self, action: str, icon: str, name: str, row: QHBoxLayout) -> IconButton:
        button = IconButton(self._theme, icon, tr(name), self)
        button.setObjectName(action)
        button.clicked.connect(self._on_clicked)
        row.addWidget(button)
        self._buttons[action] = button
        return button

    def _on_clicked(self) -> None:
        self.wished.emit(self.sender().objectName())


class Editor(QWidget):
    """The in-place editor of a turn.

    Signals: `done(text)`; `cancelled()`.
    """

    done = Signal(str)
    cancelled = Signal()

    def __init__(self, theme: Theme, text: str, button: str, enter_sends: bool, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme, self._enter_sends = theme, enter_sends
        self.edit = QPlainTextEdit(text, self)
        self.edit.setFrameShape(QPlainTextEdit.Shape.NoFrame)
        self.edit.setFont(theme.font("message"))
        self.edit.setStyleSheet("background: transparent;")
        self.edit.setAccessibleName(tr("Edit the message"))
        self.edit.setTabChangesFocus(True)
        self.edit.document().setDocumentMargin(0)
        self.edit.installEventFilter(self)
        send, cancel = QPushButton(tr(button), self), QPushButton(tr("Cancel"), self)
        send.setProperty("primary", "true")
        send.clicked.connect(self._on_send)
        cancel.clicked.connect(self.cancelled)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(cancel)
        row.addWidget(send)
        column = QVBoxLayout(self)
        column.setContentsMargins(PAD, PAD, PAD, PAD)
        column.setSpacing(RELATED)
        column.addWidget(self.edit, 1)
        column.addLayout(row)

    def measure(self, width: int) -> int:
        """Return a height that shows the text, within limits."""
        self.edit.resize(width - 2 * PAD, self.edit.height())
        document = self.edit.document()
        lines = max(FEWEST_LINES, min(MOST_LINES, int(document.size().height())))  # its layout counts lines, not pixels
        # Ask the editor for its line height: with fractional font sizes the font metrics give less.
        first = document.firstBlock()
        line = self.edit.blockBoundingRect(first).height() / max(1, first.lineCount())
        return round(lines * line + 0.49) + TARGET + 3 * PAD + RELATED

    def eventFilter(self, watched: object, event: QEvent) -> bool:
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            if event.key() == Qt.Key.Key_Escape:
                self.cancelled.emit()
                return True
            if sends(event, self._enter_sends):
                self._on_send()
                return True
        return False

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("accent"), 1))
        painter.setBrush(self._theme.colour("raised"))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), CARD_RADIUS, CARD_RADIUS)

    def _on_send(self) -> None:
        self.done.emit(self.edit.toPlainText())


class Folded(QWidget):
    """A line that expands to its text when pressed.

    Signal: `grown` when it is expanded or folded.
    """

    grown = Signal()

    def __init__(self, theme: Theme, name: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._open = False
        self._words = self._fresh = ""
        self.button = QPushButton(self)
        self.button.setFlat(True)
        self.button.setFont(theme.font("small"))
        self.button.setStyleSheet(
            f"QPushButton {{ border: 1px solid transparent; background: transparent; color: {theme.colours.muted};"
            f" text-align: left; padding: 0 {INSIDE}px 0 2px; }}"
            f"QPushButton:hover {{ color: {theme.colours.text}; }}"
            f"QPushButton:focus {{ border-color: {theme.colours.accent}; }}"
        )
        self.button.clicked.connect(self._on_clicked)
        self._text = PlainView(theme, "base", "muted", self)
        self._text.setAccessibleName(name)
        self._text.hide()

    def show_text(self, words: str, text: str) -> None:
        """Set the line and its text."""
        self._words = words
        self.button.setText(words.replace("&", "&&"))
        self._show_sign()
        self._fresh = text
        # Do not lay out folded text: this would cost time with every piece for nothing.
        if self._open:
            self._text.set_text(text)

    def measure(self, width: int) -> int:
        """Lay out at this width and return the height."""
        self.button.setGeometry(-6, 0, min(width, self.button.sizeHint().width() + RELATED), TARGET)
        if not self._open:
            return TARGET
        height = self._text.measure(width - GROUP)
        self._text.setGeometry(GROUP, TARGET + INSIDE, width - GROUP, height)
        return TARGET + INSIDE + height

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._open:
            box = self._text.geometry()
            QPainter(self).fillRect(INSIDE, box.top(), 2, box.height(), self._theme.colour("border"))

    def _show_sign(self) -> None:
        self.button.setIcon(self._theme.icon("chevron-down" if self._open else "chevron-right", "muted"))
        self.button.setAccessibleName(self._words + (tr(", shown") if self._open else tr(", folded")))

    def _on_clicked(self) -> None:
        self._open = not self._open
        self._text.setVisible(self._open)
        self._text.set_text(self._fresh if self._open else "")
        self._show_sign()
        self.grown.emit()


class Reasoning(Folded):
    """The model's reasoning before its answer, and the time it took."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(theme, tr("Reasoning"), parent)

    def show_reasoning(self, text: str, seconds: float | None) -> None:
        """Show the reasoning so far; `seconds` is None while it goes on."""
        words = (
            tr("Thinking…")
            if seconds is None
            else tr("Thought for {}").format(formatting.seconds(seconds))
            if seconds >= 1
            else tr("Thought for a moment")
        )
        self.show_text(words, text)


class Quotes(Folded):
    """The passages of a long document that went with a question, verbatim with page numbers."""

    def __init__(self, theme: Theme, excerpt: Excerpt, parent: QWidget) -> None:
        super().__init__(theme, tr("Parts of the document"), parent)
        name, of, pages = excerpt.document.name, len(excerpt.document.pages), excerpt.pages
        if of > 1:
            words = tr("{} of {} pages of {} were read").format(len(pages), of, name)
            text = "\n\n".join(f"{tr('Page {}').format(page)}\n{quote}" for page, quote in excerpt.quotes)
        else:
            words = tr("{} parts of {} were read").format(len(excerpt.quotes), name)
            text = "\n\n".join(f"[…] {quote}" for _, quote in excerpt.quotes)
        self.show_text(words, text)
