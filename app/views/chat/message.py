"""One turn of the conversation: the user's in a tinted block, the model's as plain text, each with its actions."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QRectF, Qt, Signal
from PySide6.QtGui import QEnterEvent, QGuiApplication, QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel, QWidget

from app.conversations.attached import Excerpt
from app.conversations.conversation import WAITING, Turn
from app.i18n import formatting
from app.i18n.translator import number, said, tr
from app.notices import notices
from app.settings.theme import CARD_RADIUS, INSIDE, RELATED, TARGET, Theme
from app.views.chat.body import Body
from app.views.chat.chip_words import words_in_turn
from app.views.chat.chips import ChipRow
from app.views.chat.message_parts import PAD, ActionRow, Editor, Quotes, Reasoning
from app.views.chat.pictures import PictureRow
from app.views.chat.text import PlainView
from core.sentence import unpack

WIDEST = 0.8
"""Largest share of the column's width for the user's messages."""
ENDS = {
    "length": "Stopped at the longest allowed reply.",
    "context": "Stopped because the context is full.",
    "stopped": "Stopped.",
    "failed": "The reply could not be finished.",
    "edited": "Edited.",
}


class MessageView(QWidget):
    """Base of the views of both kinds of turns.

    Signals: `wished(action, turn id)`; `edited(turn id, text)`; `grown`; `link(str)`; `freed` when an edit has ended;
    `opened(Document)` when a chip is pressed.
    """

    wished = Signal(str, str)
    edited = Signal(str, str)
    grown = Signal()
    link = Signal(str)
    freed = Signal()
    opened = Signal(object)
    offered: tuple[tuple[str, str, str], ...] = ()
    save_word = "Save"

    def __init__(self, theme: Theme, turn: Turn, excerpts: Sequence[Excerpt], parent: QWidget) -> None:
        """`excerpts`: the passages of long documents that went with the question."""
        super().__init__(parent)
        self.theme = theme
        self.turn = turn
        self.row = ActionRow(theme, self.offered, self)
        self.row.wished.connect(self._on_wished)
        self.editor: Editor | None = None
        self.enter_sends = True
        """Whether Enter alone ends an edit, as in the composer."""
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)

    def show_turn(self, versions: tuple[int, int]) -> None:
        """Update the view to the turn's current state."""
        self.row.set_versions(*versions)

    def measure(self, width: int) -> int:
        """Lay out everything at this width and return the height."""
        raise NotImplementedError

    @property
    def settled(self) -> bool:
        """Whether all of the text is shown."""
        return True

    def begin_edit(self, text: str = "") -> None:
        """Open the in-place editor, with the turn's text or with an interrupted draft."""
        if self.editor is None:
            self.editor = Editor(self.theme, text or self.turn.content, self.save_word, self.enter_sends, self)
            self.editor.done.connect(self._on_edited)
            self.editor.cancelled.connect(self.end_edit)
            self.editor.edit.textChanged.connect(self.grown)
            self.editor.show()
            self.grown.emit()
            self.editor.edit.setFocus()
            self.editor.edit.moveCursor(self.editor.edit.textCursor().MoveOperation.End)

    def end_edit(self) -> None:
        """Close the editor and discard its text."""
        if self.editor is not None:
            editor, self.editor = self.editor, None
            editor.hide()
            editor.deleteLater()
            self.grown.emit()
            self.freed.emit()

    def enterEvent(self, event: QEnterEvent) -> None:
        self.row.set_lively(True)

    def leaveEvent(self, event: QEvent) -> None:
        self.row.set_lively(False)

    def _on_edited(self, text: str) -> None:
        if text.strip() == self.turn.content.strip():
            self.end_edit()
        elif text.strip():
            # Once accepted, a new version replaces this view. Keep the text until then.
            self.edited.emit(self.turn.id, text)

    def _on_wished(self, action: str) -> None:
        if action == "copy":
            QGuiApplication.clipboard().setText(self.turn.content)
            self.row.copied()
        elif action == "edit":
            self.begin_edit()
        else:
            self.wished.emit(action, self.turn.id)


class UserMessage(MessageView):
    """The user's text, as typed, in a tinted block on the right."""

    offered = (
        ("copy", "copy", "Copy"),
        ("edit", "edit", "Edit and ask again"),
        ("regenerate", "regenerate", "Ask again"),
        ("take_back", "close", "Take back"),
    )
    save_word = "Send"

    def __init__(self, theme: Theme, turn: Turn, excerpts: Sequence[Excerpt], parent: QWidget) -> None:
        super().__init__(theme, turn, excerpts, parent)
        self._text = PlainView(theme, parent=self)
        self._text.link.connect(self.link)
        self._text.setAccessibleName(tr("Your message"))
        self._chips = ChipRow(theme, self)
        in_parts = [each.document for each in excerpts]
        self._texts = [each for each in turn.attached if not each.picture]
        self._chips.show_chips([words_in_turn(each, turn.counts, in_parts=each in in_parts) for each in self._texts])
        self._chips.opened.connect(self._on_opened)
        self._pictures = PictureRow([each for each in turn.attached if each.picture], self)
        self._pictures.opened.connect(self.opened)
        self._box = QRectF()
        self._waits = QLabel(self)
        self._waits.setObjectName("waits")
        self._waits.setFont(theme.font("small"))
        self._waits.setStyleSheet(f"color: {theme.colours.muted};")
        self._waits.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        # The versions are always visible: no hidden button may stand between them and the edge.
        self.row.put_versions_last()
        self.row.always_draw("regenerate")
        self.row.always_draw("take_back")

    def show_turn(self, versions: tuple[int, int]) -> None:
        super().show_turn(versions)
        self._text.set_text(self.turn.content)
        waits = self.turn.end == WAITING
        self._waits.setText(tr("Waits for the reply in another conversation") if waits else "")
        again = {"regenerate"} if self.turn.end else set()
        copy = {"copy"} if self.turn.content else set()
        self.row.show_only({"take_back"} if waits else {"edit", *copy, *again})

    def measure(self, width: int) -> int:
        self._text.setVisible(self.editor is None and bool(self.turn.content))
        self.row.setVisible(self.editor is None)
        pictures = self._pictures.measure(width)
        self._pictures.setGeometry(0, 0, width, pictures)
        top = pictures + self._chips.measure(width, right=True)
        self._chips.setGeometry(0, pictures, width, top - pictures)
        if self.editor is not None:
            height = self.editor.measure(width)
            self.editor.setGeometry(0, top, width, height)
            self._box = QRectF()
            return top + height + INSIDE
        return self._measure_text(top, width)

    def _measure_text(self, top: int, width: int) -> int:
        self._box = self._lay_text(top, width) if self.turn.content else QRectF()
        size = self.row.sizeHint().width()
        bottom = (round(self._box.bottom()) if self.turn.content else top) + INSIDE
        self.row.setGeometry(width - size, bottom, size, TARGET)
        self._waits.setVisible(bool(self._waits.text()) and self.editor is None)
        self._waits.setGeometry(0, bottom, width - size - INSIDE, TARGET)
        return bottom + TARGET

    def _lay_text(self, top: int, width: int) -> QRectF:
        inner = min(self._text.natural_width(), round(width * WIDEST) - 2 * PAD)
        height = self._text.measure(inner)
        left = width - inner - 2 * PAD
        self._text.setGeometry(left + PAD, top + PAD - 2, inner, height)
        return QRectF(left, top, inner + 2 * PAD, height + 2 * PAD - 4)

    def _on_opened(self, place: int) -> None:
        self.opened.emit(self._texts[place])

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.theme.colour("tint"))
        painter.drawRoundedRect(self._box, CARD_RADIUS, CARD_RADIUS)


class ReplyMessage(MessageView):
    """The model's text over the whole column, with the receipt and actions below."""

    offered = (
        ("copy", "copy", "Copy"),
        ("edit", "edit", "Edit this reply"),
        ("regenerate", "regenerate", "Write another reply"),
        ("continue", "continue", "Continue this reply"),
    )

    def __init__(self, theme: Theme, turn: Turn, excerpts: Sequence[Excerpt], parent: QWidget) -> None:
        super().__init__(theme, turn, excerpts, parent)
        self._note = QLabel(self)
        self._note.setObjectName("left_out")
        self._note.setFont(theme.font("small"))
        self._note.setStyleSheet(f"color: {theme.colours.muted};")
        self._reasoning: Reasoning | None = None
        self._body = Body(theme, self)
        self._body.grown.connect(self.grown)
        self._body.link.connect(self.link)
        self._body.setAccessibleName(tr("Reply"))
        self.quotes = [Quotes(theme, excerpt, self) for excerpt in excerpts]
        for quotes in self.quotes:
            quotes.grown.connect(self.grown)
        self._line = ""
        self._receipt = QLabel(self)
        self._receipt.setObjectName("receipt")
        self._receipt.setFont(theme.font("small"))
        self._receipt.setStyleSheet(f"color: {theme.colours.muted};")
        self._waiting = QLabel("●", self)
        self._waiting.setStyleSheet(f"color: {theme.colours.muted};")
        self._waiting.setAccessibleName(tr("Waiting for the first word"))

    @property
    def settled(self) -> bool:
        return self._body.settled

    def show_turn(self, versions: tuple[int, int]) -> None:
        super().show_turn(versions)
        turn = self.turn
        if turn.reasoning:
            self._show_reasoning(turn)
        self._note.setText(notices.left_out(turn.left_out) if turn.left_out else "")
        self._body.feed(turn.content, bool(turn.end))
        self._line = _line_under(turn)
        self._receipt.setToolTip(_details(turn))
        carry_on = {"continue"} if turn.end in ("length", "stopped", "edited", "failed") and turn.content else set()
        self.row.show_only({"copy", "edit", "regenerate", *carry_on})
        if turn.end and turn.content:
            self._body.setAccessibleDescription(turn.content[:2000])

    def measure(self, width: int) -> int:
        top = 0
        self._note.setVisible(bool(self._note.text()))
        if self._note.text():
            self._note.setGeometry(0, 0, width, self._note.sizeHint().height())
            top += self._note.height() + RELATED
        if self._reasoning is not None:
            height = self._reasoning.measure(width)
            self._reasoning.setGeometry(0, top, width, height)
            top += height + INSIDE
        return self._measure_text(top, width)

    def _measure_text(self, top: int, width: int) -> int:
        editing, ended = self.editor is not None, bool(self.turn.end)
        self._body.setVisible(not editing)
        if self.editor is not None:
            height = self.editor.measure(width)
            self.editor.setGeometry(0, top, width, height)
        else:
            height = self._body.measure(width)
            self._body.setGeometry(0, top, width, height)
        empty = not self.turn.content and not self.turn.reasoning and not ended
        self._waiting.setVisible(empty)
        self._waiting.setGeometry(0, top, TARGET, TARGET)
        top = self._measure_quotes(top + max(height, TARGET if empty else 0) + INSIDE, width, ended and not editing)
        self.row.setVisible(ended and not editing)
        self._receipt.setVisible(ended and not editing)
        size = self.row.sizeHint().width()
        self.row.setGeometry(0, top, size, TARGET)
        metrics = self._receipt.fontMetrics()
        self._receipt.setText(metrics.elidedText(self._line, Qt.TextElideMode.ElideRight, width))
        words = self._receipt.sizeHint().width()
        if words > width - size - RELATED:
            # Not enough room beside the buttons: use a line of its own.
            top += TARGET
        self._receipt.setGeometry(max(0, width - words), top, min(words, width), TARGET)
        return top + TARGET

    def _measure_quotes(self, top: int, width: int, shown: bool) -> int:
        for quotes in self.quotes:
            quotes.setVisible(shown)
            if shown:
                height = quotes.measure(width)
                quotes.setGeometry(0, top, width, height)
                top += height + INSIDE
        return top

    def _show_reasoning(self, turn: Turn) -> None:
        if self._reasoning is None:
            self._reasoning = Reasoning(self.theme, self)
            self._reasoning.grown.connect(self.grown)
            self._reasoning.show()
        thinking = turn.reasoning_s is None and not turn.end
        self._reasoning.show_reasoning(turn.reasoning, None if thinking else turn.reasoning_s or 0.0)


def _line_under(turn: Turn) -> str:
    end = tr(ENDS.get(turn.end, ""))
    return " ".join(part for part in (end, formatting.receipt(turn.receipt)) if part)


def _details(turn: Turn) -> str:
    """List all figures of the receipt for the tool tip."""
    names = {"model": "Model", "format": "Format", "seed": "Seed", "prompt_tokens": "Prompt tokens", "plan": "Plan",
             "reused_tokens": "Reused from the cache", "prompt_tok_s": "Prompt tokens/s"}  # fmt: skip
    rows = [(tr(names[key]), turn.receipt[key]) for key in names if turn.receipt.get(key) not in (None, "")]
    return "\n".join(f"{name}: {_figure(value)}" for name, value in rows)


def _figure(value: object) -> str:
    return number(f"{value:,.1f}") if isinstance(value, float) else said(unpack(value))
