"""Verdicts in the model dialog: the one on a model, and the meaning of all four."""

from __future__ import annotations

from PySide6.QtCore import Qt, Slot
from PySide6.QtWidgets import QGridLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from app.i18n import formatting
from app.i18n.translator import said, tr
from app.settings.theme import EDGE, GROUP, ICON, INSIDE, RELATED, Theme
from app.views.models import words
from core.hub.fit import Fit, Kind

MEANINGS: dict[Kind, str] = {
    "fits": "The fastest device holds all of it.",
    "cpu_help": "Processor and graphics card share the work.",
    "slow": "It runs, slower than you read.",
    "no": "It needs more memory than there is.",
}


def wrapping_label(parent: QWidget) -> QLabel:
    """Create a label for selectable plain text of any length."""
    label = QLabel(parent)
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


class FitView(QWidget):
    """The verdict on one model: icon and word, reason, and figures."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._icon, self._headline = QLabel(self), wrapping_label(self)
        self._reason, self._figures = wrapping_label(self), wrapping_label(self)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(RELATED)
        grid.setVerticalSpacing(INSIDE)
        grid.setColumnStretch(1, 1)
        grid.addWidget(self._icon, 0, 0, Qt.AlignmentFlag.AlignTop)
        for at, label in enumerate((self._headline, self._reason, self._figures)):
            grid.addWidget(label, at, 1)

    def show_fit(self, fit: Fit | None, asking: bool) -> None:
        """Show a verdict. `asking`: an answer is on its way."""
        self._figures.setFont(self._theme.font("small"))
        self._figures.setStyleSheet(f"color: {self._theme.colours.muted};")
        for widget in (self._icon, self._reason, self._figures):
            widget.setVisible(fit is not None)
        if fit is None:
            self._headline.setText(tr("Asking whether it fits…") if asking else tr("Whether it fits is not known."))
            self._headline.setStyleSheet(f"color: {self._theme.colours.muted};")
            return
        word, icon, token = words.VERDICTS[fit.kind]
        speed = words.speed(fit)
        self._icon.setPixmap(self._theme.pixmap(icon, token, ICON, self.devicePixelRatioF()))
        self._headline.setText(formatting.whole_rates(f"{words.tr(word)}: {speed}") if speed else words.tr(word))
        self._headline.setStyleSheet(f"color: {getattr(self._theme.colours, token)}; font-weight: 600;")
        self._reason.setText(said(fit.reason))
        self._figures.setText("\n".join(words.figures(fit)))


class FitGuide(QWidget):
    """Placeholder while no model is chosen: what the dialog shows, and the four verdicts."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._title = QLabel(tr("Choose a model"), self)
        self._what = wrapping_label(self)
        self._what.setText(tr("You see whether it runs on this computer, and how fast, before you download it."))
        self._icons: dict[Kind, QLabel] = {}
        self._names: dict[Kind, QLabel] = {}
        self._meanings: list[QLabel] = []
        grid = QGridLayout()
        grid.setHorizontalSpacing(RELATED)
        grid.setVerticalSpacing(INSIDE // 2)
        grid.setColumnStretch(1, 1)
        for at, (kind, (word, _, _)) in enumerate(words.VERDICTS.items()):
            self._icons[kind], self._names[kind] = QLabel(self), QLabel(words.tr(word), self)
            meaning = wrapping_label(self)
            meaning.setText(tr(MEANINGS[kind]))
            self._meanings.append(meaning)
            grid.addWidget(self._icons[kind], 3 * at, 0)
            grid.addWidget(self._names[kind], 3 * at, 1)
            grid.addWidget(meaning, 3 * at + 1, 1)
            grid.setRowMinimumHeight(3 * at + 2, RELATED)
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE * 2, EDGE, EDGE * 2, EDGE)
        column.setSpacing(RELATED)
        column.addStretch(2)
        column.addWidget(self._title)
        column.addWidget(self._what)
        column.addSpacing(GROUP)
        column.addLayout(grid)
        column.addStretch(3)
        theme.changed.connect(self.show_theme)
        self.show_theme()

    @Slot()
    def show_theme(self) -> None:
        """Apply the current fonts and colours."""
        colours = self._theme.colours
        self._title.setFont(self._theme.font("heading1"))
        for label in (self._what, *self._meanings):
            label.setStyleSheet(f"color: {colours.muted};")
        for kind, (_, icon, token) in words.VERDICTS.items():
            self._icons[kind].setPixmap(self._theme.pixmap(icon, token, ICON, self.devicePixelRatioF()))
            self._names[kind].setStyleSheet(f"color: {getattr(colours, token)}; font-weight: 600;")
