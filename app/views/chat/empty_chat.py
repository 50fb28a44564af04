"""What stands where the conversation will be: the mark, a sentence on this machine, prompts to try."""

from __future__ import annotations

from PySide6.QtCore import QRectF, Qt, Signal
from PySide6.QtGui import QFontMetrics, QPainter, QPaintEvent, QPen, QResizeEvent
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


class PromptCard(QAbstractButton):
    """A prompt to try: what it is about, and its words; with an icon, something else that can be done."""

    def __init__(self, theme: Theme, parent: QWidget, icon: str = "") -> None:
        super().__init__(parent)
        self._theme, self._icon = theme, icon
        self._about = self.prompt = ""
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def set_prompt(self, about: str, prompt: str) -> None:
        """Other words."""
        self._about, self.prompt = about, prompt
        self.setAccessibleName(f"{about}: {prompt}")
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("border"), 1))
        painter.setBrush(self._theme.colour("hover" if self.underMouse() or self.isDown() else "window"))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), CARD_RADIUS, CARD_RADIUS)
        box = self.rect().adjusted(14, 11, -14, -11)
        if self._icon:
            ratio, middle = self.devicePixelRatioF(), box.center().y() - ICON // 2
            painter.drawPixmap(box.right() - ICON, middle, self._theme.pixmap(self._icon, "accent", ICON, ratio))
            box.setRight(box.right() - ICON - RELATED)
        bold = self._theme.font()
        bold.setWeight(bold.Weight.DemiBold)
        painter.setFont(bold)
        painter.setPen(self._theme.colour("text"))
        painter.drawText(box, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft, self._about)
        painter.setFont(self._theme.font())
        painter.setPen(self._theme.colour("muted"))
        below = box.adjusted(0, painter.fontMetrics().lineSpacing() + 3, 0, 4)
        wrap = Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft | Qt.TextFlag.TextWordWrap
        painter.drawText(below, int(wrap), self.prompt)
        if self.hasFocus():
            paint_focus(painter, self._theme, QRectF(self.rect()), CARD_RADIUS)


class EmptyChat(QWidget):
    """`chosen(prompt)` when one of the prompts is pressed; `model_wished(id)` for the recommended model."""

    chosen = Signal(str)
    model_wished = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._mark = QLabel(self)
        self._title = QLabel(tr("What would you like to know?"), self)
        self._machine = QLabel(self)
        self._machine.setWordWrap(True)
        self._cards = [PromptCard(theme, self) for _ in PROMPTS]
        self._advice = PromptCard(theme, self, "download")
        self._advice.clicked.connect(self._on_advice)
        self._advised = ""
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

    def set_guide(self, guide: bool) -> None:
        """The guide is asked about this program, other models about the world."""
        for card, (about, prompt) in zip(self._cards, GUIDE_PROMPTS if guide else PROMPTS, strict=True):
            # The guide understands English only; other models most languages.
            card.set_prompt(tr(about), prompt if guide else tr(prompt))
        self._fit_cards(self._cards[0].width())

    def set_machine(self, sentence: str) -> None:
        """What was found on this machine."""
        self._machine.setText(sentence)

    def advise(self, id: str, words: str) -> None:
        """One model that suits this machine, in a sentence."""
        self._advised = id
        self._advice.set_prompt(tr("Recommended for this computer"), words)
        self._advice.show()
        self._fit_cards(self._cards[0].width())

    def _on_advice(self) -> None:
        self.model_wished.emit(self._advised)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        side = max(EDGE, (self.width() - COLUMN_WIDTH) // 2)
        self._column.setContentsMargins(side, EDGE, side, EDGE)
        self._fit_cards((self.width() - 2 * side - RELATED) // 2)

    def _fit_cards(self, width: int) -> None:
        """All cards as high as the one with the longest prompt."""
        metrics = QFontMetrics(self._theme.font())
        longest = max(metrics.horizontalAdvance(card.prompt) for card in self._cards)
        lines = 2 + longest // max(1, width - 40)
        for card in self._cards:
            card.setFixedHeight(lines * metrics.lineSpacing() + 28)
        lines = 2 + metrics.horizontalAdvance(self._advice.prompt) // max(1, 2 * width - 80)
        self._advice.setFixedHeight(lines * metrics.lineSpacing() + 28)

    def _on_clicked(self) -> None:
        card = self.sender()
        if isinstance(card, PromptCard):
            self.chosen.emit(card.prompt)

    def _on_theme(self) -> None:
        self._mark.setPixmap(self._theme.pixmap("mark", "accent", 48))
        self._title.setFont(self._theme.font("title"))
        self._machine.setStyleSheet(f"color: {self._theme.colours.muted};")
        self.update()
