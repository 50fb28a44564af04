"""A tool call in the transcript: name and arguments, the user's decision, and the folded result."""

from __future__ import annotations

import json
from collections.abc import Sequence

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QLabel, QPushButton, QWidget

from app.conversations.attached import Excerpt
from app.conversations.conversation import Turn
from app.i18n.translator import tr
from app.settings.theme import CARD_RADIUS, INSIDE, RELATED, TARGET, Theme
from app.views.chat.message import MessageView
from app.views.chat.message_parts import PAD
from app.views.chat.text import PlainView
from app.views.controls.tab_stops import holds_focus

SHOWN = 8000
"""Longest text, in characters, of arguments or results that is laid out."""
STATES = {
    "asking": ("Waits for you", "warn"),
    "running": ("Running…", "muted"),
    "done": ("Done", "ok"),
    "failed": ("Failed", "danger"),
    "denied": ("Not allowed", "muted"),
    "stopped": ("Stopped", "muted"),
}
DECISIONS = (("once", "Allow once"), ("always", "Always allow"), ("never", "Never allow"))


class ToolCard(MessageView):
    """The view of one tool call.

    Signal: `wished("allow_once", "allow_always" or "allow_never", turn id)` when the user decides.
    """

    def __init__(self, theme: Theme, turn: Turn, excerpts: Sequence[Excerpt], parent: QWidget) -> None:
        super().__init__(theme, turn, excerpts, parent)
        self._open = False
        self.head = QPushButton(self)
        self.head.setFlat(True)
        self.head.setStyleSheet(
            f"QPushButton {{ border: 1px solid transparent; background: transparent; color: {theme.colours.text};"
            f" text-align: left; padding: 0 {INSIDE}px; font-weight: 600; }}"
            f"QPushButton:focus {{ border-color: {theme.colours.accent}; }}"
        )
        self.head.clicked.connect(self._on_fold)
        self.state = QLabel(self)
        self.state.setFont(theme.font("small"))
        self.arguments, self.result = self._text(tr("Arguments")), self._text(tr("Result"))
        self._texts = (self.arguments, self.result)
        self._names = (self._name(tr("Arguments")), self._name(tr("Result")))
        self.buttons = [self._button(decision, words) for decision, words in DECISIONS]
        self.row.hide()
        self._box = QRectF()

    def show_turn(self, versions: tuple[int, int]) -> None:
        turn, call = self.turn, self.turn.call
        assert call is not None
        words, token = STATES.get(turn.end, STATES["stopped"])
        self.head.setText(call.name)
        self.head.setAccessibleName(f"{tr('Tool')}: {call.name}, {tr(words)}")
        self.state.setText(tr(words))
        self.state.setStyleSheet(f"color: {getattr(self.theme.colours, token)};")
        self.head.setIcon(self.theme.icon("chevron-down" if self.unfolded else "chevron-right", "muted"))
        self._show_texts()
        decided = turn.end != "asking" and any(map(holds_focus, self.buttons))
        for button in self.buttons:
            button.setVisible(turn.end == "asking")
        if decided:
            self.head.setFocus()

    @property
    def unfolded(self) -> bool:
        """Whether arguments and result are shown: always while the user is asked."""
        return self._open or self.turn.end == "asking"

    def measure(self, width: int) -> int:
        inner = width - 2 * PAD
        state = self.state.sizeHint().width()
        self.state.setGeometry(width - PAD - state, RELATED, state, TARGET)
        self.head.setGeometry(RELATED, RELATED, min(self.head.sizeHint().width(), inner - state - RELATED), TARGET)
        top = RELATED + TARGET
        for name, text in zip(self._names, self._texts, strict=True):
            if not text.isHidden():
                name.setGeometry(PAD, top + INSIDE, inner, name.sizeHint().height())
                top = name.geometry().bottom() + 1
                height = text.measure(inner)
                text.setGeometry(PAD, top, inner, height)
                top += height
        if self.turn.end == "asking":
            top = self._place_buttons(top + RELATED)
        bottom = top + (PAD if self.unfolded else RELATED)
        self._box = QRectF(0.5, 0.5, width - 1, bottom - 1)
        return bottom

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        asking = self.turn.end == "asking"
        painter.setPen(QPen(self.theme.colour("warn" if asking else "border"), 1))
        painter.setBrush(self.theme.colour("raised"))
        painter.drawRoundedRect(self._box, CARD_RADIUS, CARD_RADIUS)

    def _show_texts(self) -> None:
        assert self.turn.call is not None
        # Do not lay out folded text: it takes time and nobody sees it.
        texts = (_indented(self.turn.call.arguments), self.turn.content) if self.unfolded else ("", "")
        for name, view, text in zip(self._names, self._texts, texts, strict=True):
            view.set_text(text[:SHOWN] + ("…" if len(text) > SHOWN else ""))
            view.setVisible(bool(text))
            name.setVisible(bool(text))

    def _place_buttons(self, top: int) -> int:
        left = PAD
        for button in self.buttons:
            size = button.sizeHint()
            button.setGeometry(left, top, size.width(), size.height())
            left += size.width() + RELATED
        return top + self.buttons[0].height() + INSIDE

    def _text(self, name: str) -> PlainView:
        view = PlainView(self.theme, "code", "text", self)
        view.setAccessibleName(name)
        view.link.connect(self.link)
        view.hide()
        return view

    def _name(self, words: str) -> QLabel:
        label = QLabel(words, self)
        label.setFont(self.theme.font("small"))
        label.setStyleSheet(f"color: {self.theme.colours.muted};")
        label.hide()
        return label

    def _button(self, decision: str, words: str) -> QPushButton:
        button = QPushButton(tr(words), self)
        button.setObjectName(f"allow_{decision}")
        button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        if decision == "once":
            button.setProperty("primary", "true")
        button.clicked.connect(lambda: self.wished.emit(f"allow_{decision}", self.turn.id))
        return button

    def _on_fold(self) -> None:
        self._open = not self._open
        self.show_turn((1, 1))
        self.grown.emit()


def _indented(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments
