"""Advice for a model that is too large for this computer: serve it on a larger one and connect to that."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtGui import QGuiApplication, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import CARD_RADIUS, RELATED, Theme
from app.views.models.fit import wrapping_label
from core.hub.fit import Fit
from core.remote.larger import CARD_BYTES, larger

GB = 1_000_000_000
PAD = 12


class Outgrown(QWidget):
    """A card with the command to run on the larger computer.

    Signal: `connect_wished` to open the page of remote models.
    """

    connect_wished = Signal()

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        title = QLabel(tr("Outgrown this computer?"), self)
        font = theme.font()
        font.setWeight(font.Weight.DemiBold)
        title.setFont(font)
        self.words = wrapping_label(self)
        self.command = wrapping_label(self)
        self.command.setAccessibleName(tr("Command"))
        self.command.setFont(theme.font("code"))
        copy, connect = QPushButton(tr("Copy"), self), QPushButton(tr("Connect…"), self)
        for button in (copy, connect):
            button.setAutoDefault(False)
        copy.setAccessibleName(tr("Copy: {}").format(tr("Command")))
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.command.text()))
        connect.clicked.connect(self.connect_wished)
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addWidget(copy)
        row.addWidget(connect)
        row.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(PAD, PAD, PAD, PAD)
        column.setSpacing(RELATED)
        column.addWidget(title)
        column.addWidget(self.words)
        column.addWidget(self.command)
        column.addLayout(row)

    def show_model(self, id: str, fit: Fit | None, context: int | None) -> None:
        """Show the command for a model that does not fit; hide the card otherwise."""
        self.setVisible(fit is not None and fit.kind == "no")
        if fit is None or fit.kind != "no":
            return
        found = larger(id, fit.stored_bytes, fit.context_limit, context)
        size = CARD_BYTES // GB
        words = (
            tr("On a computer with a graphics card of {} GB, vLLM serves it with this command. Then connect to it.")
            if found.cards == 1
            else tr(
                "On a computer with {} graphics cards of {} GB, vLLM serves it with this command. Then connect to it."
            )
        )
        self.words.setText(words.format(size) if found.cards == 1 else words.format(found.cards, size))
        self.command.setText(found.command)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self._theme.colour("border"), 1))
        painter.setBrush(self._theme.colour("raised"))
        painter.drawRoundedRect(self.rect().adjusted(0, 0, -1, -1), CARD_RADIUS, CARD_RADIUS)
