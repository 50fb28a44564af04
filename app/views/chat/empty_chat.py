"""The empty chat: logo, a sentence about this machine, and prompts to try."""

from __future__ import annotations

from PySide6.QtCore import QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QFont, QFontMetrics, QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QAbstractButton, QGridLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import CARD_RADIUS, COLUMN_WIDTH, EDGE, GROUP, ICON, RELATED, Theme
from app.views.controls.controls import paint_focus

GUIDE_PROMPTS = (
    ("What is this?", "What is HeteGen and what does it do?"),
    ("A larger model", "How do I get a bigger model?"),
    ("The split", "What do the split and the numbers mean?"),
    ("Speed", "Why is it so slow?"),
)
PROMPTS = (
    ("Explain", "Explain how a refrigerator moves heat, in plain words."),
    ("Write", "Write a short, friendly note that declines an invitation."),
    ("Plan", "Plan a vegetarian dinner for four in under an hour."),
    ("Code", "Write a Python function that finds duplicate files in a folder."),
)


WRAPPED = int(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft | Qt.TextFlag.TextWordWrap)
SIDE, ABOVE, BETWEEN = 14, 11, 3
"""Pixels around a card's text, and between its title and the prompt."""
NO_END = 10_000


class PromptCard(QAbstractButton):
    """A button with a prompt to try; with an icon, another action."""

    def __init__(self, theme: Theme, parent: QWidget, icon: str = "") -> None:
        super().__init__(parent)
        self._theme, self._icon = theme, icon
        self._about = self.prompt = ""
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def set_prompt(self, about: str, prompt: str) -> None:
        """Set the title and the prompt."""
        self._about, self.prompt = about, prompt
        self.setAccessibleName(f"{about}: {prompt}")
        self.update()

    def height_for(self, width: int) -> int:
        """Return the height, in pixels, of the full text at a width."""
        inner = QRect(0, 0, width - 2 * SIDE - (ICON + RELATED if self._icon else 0), NO_END)
        heights = (QFontMetrics(font).boundingRect(inner, WRAPPED, words).height() for font, _, words in self._lines())
        return sum(heights) + BETWEEN + 2 * ABOVE

    def _lines(self) -> tuple[tuple[QFont, str, str], ...]:
        bold = self._theme.font()
        bold.setWeight(bold.Weight.DemiBold)
        return (bold, "text", self._about), (self._theme.font(), "muted", self.prompt)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("border"), 1))
        painter.setBrush(self._theme.colour("hover" if self.underMouse() or self.isDown() else "window"))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), CARD_RADIUS, CARD_RADIUS)
        box = self.rect().adjusted(SIDE, ABOVE, -SIDE, NO_END)
        if self._icon:
            ratio, middle = self.devicePixelRatioF(), self.rect().center().y() - ICON // 2
            painter.drawPixmap(box.right() - ICON, middle, self._theme.pixmap(self._icon, "accent", ICON, ratio))
            box.setRight(box.right() - ICON - RELATED)
        for font, colour, words in self._lines():
            painter.setFont(font)
            painter.setPen(self._theme.colour(colour))
            painter.drawText(box, WRAPPED, words)
            box.setTop(box.top() + painter.fontMetrics().boundingRect(box, WRAPPED, words).height() + BETWEEN)
        if self.hasFocus():
            paint_focus(painter, self._theme, QRectF(self.rect()), CARD_RADIUS)


class EmptyChat(QWidget):
    """Placeholder shown before the first question.

    Signals: `chosen(prompt)` when a prompt is pressed; `model_wished(id)` for the recommended model.
    """

    chosen = Signal(str)
    model_wished = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._mark = QLabel(self)
        self._title = QLabel(tr("What would you like to know?"), self)
        self._machine = QLabel(self)
        for label in (self._title, self._machine):
            label.setWordWrap(True)
        self._cards = [PromptCard(theme, self) for _ in PROMPTS]
        self._advice = PromptCard(theme, self, "download")
        self._advice.clicked.connect(self._on_advice)
        self._advised = ""
        self._guide: bool | None = None
        self._advice.hide()
        grid = QGridLayout()
        grid.setSpacing(RELATED)
        for at, card in enumerate(self._cards):
            card.clicked.connect(self._on_clicked)
            grid.addWidget(card, at // 2, at % 2)
        column = self._column = QVBoxLayout(self)
        column.setSpacing(RELATED)
        column.addStretch(2)
        for label in (self._mark, self._title, self._machine):
            label.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            column.addWidget(label)
        column.addSpacing(GROUP)
        column.addLayout(grid)
        column.addWidget(self._advice)
        column.addStretch(3)
        theme.changed.connect(self._on_theme)
        self.set_guide(True)
        self._on_theme()

    def minimumSizeHint(self) -> QSize:
        # Notices and the composer need their height more than this page does.
        return QSize(super().minimumSizeHint().width(), 0)

    def set_guide(self, guide: bool) -> None:
        """Choose the prompts: about this program for the built-in guide, general ones for other models."""
        if guide == self._guide:  # called whenever a reply's figures change
            return
        self._guide = guide
        for card, (about, prompt) in zip(self._cards, GUIDE_PROMPTS if guide else PROMPTS, strict=True):
            # The guide understands English only; other models most languages.
            card.set_prompt(tr(about), prompt if guide else tr(prompt))
        self._fit_cards(self._cards[0].width())

    def set_machine(self, sentence: str) -> None:
        """Set the sentence about this machine."""
        self._machine.setText(sentence)

    def advise(self, id: str, words: str) -> None:
        """Show a recommended model, described by `words`."""
        self._advised = id
        self._advice.set_prompt(tr("Recommended for this computer"), words)
        self._fit_cards(self._cards[0].width())

    def _on_advice(self) -> None:
        self.model_wished.emit(self._advised)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        side = max(EDGE, (self.width() - COLUMN_WIDTH) // 2)
        self._column.setContentsMargins(side, EDGE, side, EDGE)
        self._fit_cards((self.width() - 2 * side - RELATED) // 2)

    def _fit_cards(self, width: int) -> None:
        """Make all cards as high as the highest one."""
        height = max(card.height_for(width) for card in self._cards)
        for card in self._cards:
            card.setFixedHeight(height)
        self._advice.setFixedHeight(self._advice.height_for(2 * width + RELATED))
        self._leave_out()

    def _leave_out(self) -> None:
        """Show what the height has room for, the most important parts first."""
        advice = (self._advice,) if self._advised else ()
        first, second = tuple(self._cards[:2]), tuple(self._cards[2:])
        parts: tuple[tuple[QWidget, ...], ...] = (
            (self._title,),
            advice,
            (self._machine,),
            first,
            second,
            (self._mark,),
        )
        margins = self._column.contentsMargins()
        inner = self.width() - margins.left() - margins.right()
        room = self.height() - margins.top() - margins.bottom() - GROUP
        for part in parts:
            room -= max((_height(widget, inner) + RELATED for widget in part), default=0)
            for widget in part:
                widget.setVisible(room >= 0 or widget is self._title)

    def _on_clicked(self) -> None:
        card = self.sender()
        if isinstance(card, PromptCard):
            self.chosen.emit(card.prompt)

    def _on_theme(self) -> None:
        self._mark.setPixmap(self._theme.pixmap("mark", "accent", 48))
        self._title.setFont(self._theme.font("title"))
        self._machine.setStyleSheet(f"color: {self._theme.colours.muted};")
        self._fit_cards(self._cards[0].width())
        self.update()


def _height(widget: QWidget, width: int) -> int:
    """Return the height, in pixels, that a part needs at a width."""
    return widget.minimumHeight() or (
        widget.heightForWidth(width) if widget.hasHeightForWidth() else widget.sizeHint().height()
    )
