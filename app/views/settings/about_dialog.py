"""The about box: version, parts, licences, and the update check."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QCoreApplication, Qt, QUrl, Signal, Slot
from PySide6.QtGui import QDesktopServices, QIcon, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app import NAME, REPOSITORY, VERSION
from app.about.about import Licence, licences, qt_folder, read_texts, versions
from app.i18n.translator import tr
from app.notices.notices import for_update
from app.notices.updates import UpdateAnswer
from app.settings.theme import EDGE, GROUP, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import TextBox
from app.views.controls.paragraph import Paragraph
from core.paths import assets

WIDTH, LOGO = 560, 56
LICENCES_SIZE, LIST_WIDTH = (820, 560), 210
COPYRIGHT = "Copyright 2026 The HeteGen authors. Free software under the Apache License 2.0, without any warranty."
QT = (
    "Uses Qt and Qt for Python (PySide6) under the GNU Lesser General Public License, version 3. Copyright The Qt "
    "Company Ltd. and other contributors. They lie unchanged, as separate libraries, in the folder below: you may "
    "replace them there by your own builds of the same version, and study and change how {} uses them."
)


class AboutDialog(Dialog):
    """The box itself.

    Signals: `update_wished`, to be answered by `show_answer`; `link(address)` to open.
    """

    update_wished = Signal()
    link = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._page = REPOSITORY
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(tr("About {}").format(NAME))
        self.setMinimumWidth(WIDTH)
        self.update_words = Paragraph(theme, "")
        self.update_words.setAccessibleName(tr("Updates"))
        self.update_words.hide()
        self.update_button = self._button(tr("Look for updates"), self._on_update)
        self.show_button = self._button(tr("Show the new version…"), self._on_show)
        self.show_button.hide()
        self._lay_out()
        self.update_button.setFocus()

    @Slot(object)
    def show_answer(self, answer: UpdateAnswer) -> None:
        """Show the outcome of the update check."""
        self.update_button.setEnabled(True)
        self._say(for_update(answer).sentence)
        self._page = answer.page
        self.show_button.setVisible(answer.kind == "newer")

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    def _lay_out(self) -> None:
        updates, foot = QHBoxLayout(), QHBoxLayout()
        updates.addWidget(self.update_button)
        updates.addWidget(self.show_button)
        updates.addStretch(1)
        folder = self._qt_folder()
        foot.addWidget(self._button(tr("Licences…"), self._on_licences))
        foot.addWidget(self._button(tr("Project page…"), lambda: self.link.emit(REPOSITORY)))
        foot.addStretch(1)
        foot.addWidget(self._button(tr("Close"), self.reject))
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(GROUP)
        column.addLayout(self._head())
        column.addWidget(Paragraph(self._theme, tr(COPYRIGHT)))
        column.addLayout(self._versions())
        column.addLayout(updates)
        column.addWidget(self.update_words)
        column.addWidget(Paragraph(self._theme, tr(QT).format(NAME), "muted"))
        column.addLayout(folder)
        column.addStretch(1)
        column.addLayout(foot)
        self.resize(WIDTH, column.heightForWidth(WIDTH))

    def _head(self) -> QHBoxLayout:
        logo = QLabel(self)
        logo.setPixmap(QIcon(str(assets() / "logo" / "logo.svg")).pixmap(LOGO, LOGO))
        name = QLabel(f"{NAME} {VERSION}", self)
        name.setFont(self._theme.font("heading1"))
        name.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        words = QVBoxLayout()
        words.setSpacing(2)
        words.addWidget(name)
        what = QCoreApplication.translate("About", "Chat with models that are larger than the graphics card.")
        words.addWidget(Paragraph(self._theme, what, "muted"))
        row = QHBoxLayout()
        row.setSpacing(GROUP)
        row.addWidget(logo)
        row.addLayout(words, 1)
        return row

    def _versions(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(GROUP)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(1, 1)
        for row, (name, number) in enumerate(versions()):
            grid.addWidget(Paragraph(self._theme, name, "muted"), row, 0)
            grid.addWidget(Paragraph(self._theme, number), row, 1)
        return grid

    def _qt_folder(self) -> QHBoxLayout:
        row = QHBoxLayout()
        row.addWidget(Paragraph(self._theme, str(qt_folder()), "muted"), 1)
        row.addWidget(self._button(tr("Open folder"), lambda: _open(qt_folder())))
        return row

    def _button(self, words: str, pressed: object) -> QPushButton:
        button = QPushButton(words, self)
        button.setAutoDefault(False)
        button.clicked.connect(pressed)
        return button

    def _say(self, words: str) -> None:
        self.update_words.setText(words)
        self.update_words.show()

    @Slot()
    def _on_update(self) -> None:
        self.update_button.setEnabled(False)
        self.show_button.hide()
        self._say(tr("Asking github.com…"))
        self.update_wished.emit()

    @Slot()
    def _on_show(self) -> None:
        self.link.emit(self._page)

    @Slot()
    def _on_licences(self) -> None:
        LicencesDialog(self._theme, licences(assets() / "licences"), self).open()


class LicencesDialog(Dialog):
    """The parts of the program on the left, the selected licence's text on the right."""

    def __init__(self, theme: Theme, parts: list[Licence], parent: QWidget) -> None:
        super().__init__(parent)
        self._theme, self._parts = theme, parts
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(tr("Licences"))
        self.resize(*LICENCES_SIZE)
        self.names = QListWidget(self)
        self.names.setAccessibleName(tr("Parts of the program"))
        self.names.setFrameShape(QFrame.Shape.NoFrame)
        self.names.setFixedWidth(LIST_WIDTH)
        for part in parts:
            self.names.addItem(f"{part.name} {part.version}".strip())
        self.text = TextBox(theme, self)
        self.text.setReadOnly(True)
        self.text.setTabChangesFocus(True)
        self.text.setFont(theme.font("code"))
        self.text.setAccessibleName(tr("Words of the licence"))
        close = QPushButton(tr("Close"), self)
        close.setAutoDefault(False)
        close.clicked.connect(self.reject)
        self.kind = Paragraph(theme, "", "muted")
        words = QVBoxLayout()
        words.addWidget(self.kind)
        words.addWidget(self.text, 1)
        halves = QHBoxLayout()
        halves.setSpacing(GROUP)
        halves.addWidget(self.names)
        halves.addLayout(words, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(GROUP, GROUP, GROUP, GROUP)
        column.addLayout(halves, 1)
        column.addWidget(close, 0, Qt.AlignmentFlag.AlignRight)
        self.names.currentRowChanged.connect(self._on_row)
        self.names.setCurrentRow(0)
        self.names.setFocus()

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))

    @Slot(int)
    def _on_row(self, row: int) -> None:
        self.kind.setText(self._parts[row].kind)
        words = read_texts(self._parts[row])
        self.text.setPlainText(words or tr("Its text is not on this computer."))


def _open(folder: Path) -> None:
    QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder)))
