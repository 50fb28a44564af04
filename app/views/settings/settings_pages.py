"""Pages of the settings dialog without settings: data folders, network accesses, log and diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QCoreApplication, Signal, Slot
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from app.about.diagnostics import tail
from app.about.network_access import ACCESSES, HUB, NEVER
from app.i18n.formatting import format_bytes
from app.settings.theme import GROUP, INSIDE, RELATED, Theme
from app.views.controls.log_box import LogBox
from app.views.controls.paragraph import Paragraph

LOG_LINES = 2000


class FoldersPage(QWidget):
    """The data folders, and the size of the kept KV caches.

    Signals: `open_requested(path)`; `remove_requested` to delete the caches, to be answered by `show_kept`.
    """

    open_requested = Signal(str)
    remove_requested = Signal()

    def __init__(
        self, theme: Theme, folders: Sequence[tuple[str, Path]], kept: int = 0, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(GROUP)
        for name, path in folders:
            shown = QCoreApplication.translate("Folders", name)
            button = QPushButton(self.tr("Open"), self)
            button.setAccessibleName(self.tr("Open: {}").format(shown))
            button.clicked.connect(partial(self.open_requested.emit, str(path)))
            column.addLayout(self._row(Paragraph(theme, shown), Paragraph(theme, str(path), "muted"), button))
        self.kept = Paragraph(theme, "", "muted")
        self.remove = QPushButton(self.tr("Remove"), self)
        self.remove.setAccessibleName(self.tr("Remove what was read"))
        self.remove.clicked.connect(self.remove_requested)
        column.addLayout(self._row(Paragraph(theme, self.tr("What was read of conversations")), self.kept, self.remove))
        column.addStretch(1)
        self.show_kept(kept)

    def show_kept(self, nbytes: int) -> None:
        """Show the size of the kept KV caches in bytes."""
        self.kept.setText(format_bytes(nbytes) if nbytes else self.tr("Nothing is kept."))
        self.remove.setEnabled(bool(nbytes))

    def _row(self, name: QLabel, value: QLabel, button: QPushButton) -> QHBoxLayout:
        words = QVBoxLayout()
        words.setSpacing(2)
        words.addWidget(name)
        words.addWidget(value)
        row = QHBoxLayout()
        row.addLayout(words, 1)
        row.addWidget(button)
        return row


class OnlinePage(QWidget):
    """The complete list of network accesses."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(INSIDE)
        column.addWidget(Paragraph(theme, _said(NEVER)))
        column.addWidget(Paragraph(theme, _said(HUB), "muted"))
        for access in ACCESSES:
            column.addSpacing(RELATED)
            heading = Paragraph(theme, _said(access.what))
            font = theme.font()
            font.setWeight(font.Weight.DemiBold)
            heading.setFont(font)
            column.addWidget(heading)
            column.addWidget(Paragraph(theme, _said(access.when)))
            column.addWidget(Paragraph(theme, self.tr("Sent: {}").format(_said(access.sent)), "muted"))
        column.addStretch(1)


def _said(text: str) -> str:
    return QCoreApplication.translate("Online", text)


class LogPage(QWidget):
    """The end of the log, and a button to copy diagnostics.

    Signal: `open_requested(folder)`.
    """

    open_requested = Signal(str)

    def __init__(self, theme: Theme, log: Path, diagnostics: Callable[[], str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._log, self._diagnostics = log, diagnostics
        self.text = LogBox(theme, self)
        self._copy = QPushButton(self.tr("Copy diagnostics"), self)
        refresh, folder = QPushButton(self.tr("Refresh"), self), QPushButton(self.tr("Open folder"), self)
        self._copy.clicked.connect(self._on_copy)
        refresh.clicked.connect(self.refresh)
        folder.clicked.connect(lambda: self.open_requested.emit(str(log.parent)))
        row = QHBoxLayout()
        for button in (self._copy, refresh, folder):
            row.addWidget(button)
        row.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(RELATED)
        column.addWidget(
            Paragraph(theme, self.tr("Diagnostics hold versions, this computer and the log, and no chat text."))
        )
        column.addWidget(self.text, 1)
        column.addLayout(row)

    @Slot()
    def refresh(self) -> None:
        """Read the log again."""
        lines = tail(self._log, LOG_LINES)
        self.text.show_lines(lines or [self.tr("The log is empty.")])

    @Slot()
    def _on_copy(self) -> None:
        QGuiApplication.clipboard().setText(self._diagnostics())
        self._copy.setText(self.tr("Copied"))
