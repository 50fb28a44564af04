"""The settings dialog, built from the declarations in `app.settings.settings`. Valid changes apply at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QCoreApplication, Qt, Signal, Slot
from PySide6.QtGui import QHideEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from app.i18n.translator import said
from app.settings.settings import Problem, Settings, declared, with_value
from app.settings.theme import EDGE, GROUP, RELATED, Theme
from app.views.controls.dialog import Dialog
from app.views.controls.inputs import list_style
from app.views.controls.paragraph import Paragraph
from app.views.controls.scroll_pane import ScrollPane
from app.views.settings.setting_fields import SettingField
from app.views.settings.settings_pages import FoldersPage, LogPage, OnlinePage

SIZE = (760, 560)
LIST_WIDTH = 190


class SettingsDialog(Dialog):
    """Edits the settings, one page per section.

    Signals: `changed(Settings, name)` for each valid change; `open_requested(path)` to show a folder;
    `remove_requested` to delete kept KV caches.
    """

    changed = Signal(object, str)
    open_requested = Signal(str)
    remove_requested = Signal()

    def __init__(
        self,
        theme: Theme,
        settings: Settings,
        folders: Sequence[tuple[str, Path]],
        log: Path,
        diagnostics: Callable[[], str],
        parent: QWidget | None = None,
        kept: Callable[[], int] = int,
    ) -> None:
        """`folders`: names and paths for the data page; `diagnostics`: composes the text for bug reports.

        `kept`: returns the bytes of KV caches on disk.
        """
        super().__init__(parent)
        self._theme, self._settings = theme, settings
        self.setWindowTitle(self.tr("Settings"))
        self.resize(theme.grown(SIZE[0]), SIZE[1])
        self._folders, self._log_path, self._diagnostics, self._kept = tuple(folders), log, diagnostics, kept
        self.fields: dict[str, SettingField] = {}
        """Fields of the pages shown so far; a page is built when it is first shown."""
        self.pages = QListWidget(self)
        self.pages.setAccessibleName(self.tr("Pages"))
        self.pages.setFrameShape(QFrame.Shape.NoFrame)
        self.pages.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._stack = QStackedWidget(self)
        self._stack.setObjectName("pages")
        self._problems = QLabel(self)
        self._problems.setObjectName("problems")
        self._problems.setWordWrap(True)
        self._problems.hide()
        self._makers = self._add_pages()
        self._lay_out()
        self.pages.currentRowChanged.connect(self._on_page)
        self.pages.setCurrentRow(0)
        theme.changed.connect(self._on_theme)
        self._on_theme()

    @property
    def settings(self) -> Settings:
        """The settings as edited in the dialog."""
        return self._settings

    def show_settings(self, settings: Settings) -> None:
        """Show settings that were changed elsewhere."""
        self._settings = settings
        for name, field in self.fields.items():
            field.show_value(getattr(settings, name))
        self._enable_custom()

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Show what was wrong in the stored settings."""
        self._problems.setText("\n".join(said(problem.sentence) for problem in problems))
        self._problems.setVisible(bool(problems))

    def show_log(self) -> None:
        """Show the log, which is the last page."""
        self.pages.setCurrentRow(self.pages.count() - 1)

    def show_page(self, words: str) -> None:
        """Show the page of this name."""
        for row in range(self.pages.count()):
            if self.pages.item(row).text() == words:
                self.pages.setCurrentRow(row)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), self._theme.colour("window"))
        painter.fillRect(0, 0, self.pages.width(), self.height(), self._theme.colour("side"))

    def hideEvent(self, event: QHideEvent) -> None:
        for field in self.fields.values():
            field.flush()
        super().hideEvent(event)

    def _section(self, section: str) -> QWidget:
        page = QWidget()
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(GROUP)
        for name, entry in declared().items():
            if entry.section == section:
                field = SettingField(self._theme, name, self._settings, page)
                field.changed.connect(self._on_change)
                self.fields[name] = field
                column.addWidget(field)
        if any(entry.reload for entry in declared().values() if entry.section == section):
            column.addWidget(
                Paragraph(
                    self._theme,
                    self.tr("Limits of memory hold at once; the others when a model is loaded again."),
                    "muted",
                )
            )
        column.addStretch(1)
        return page

    @Slot()
    def _on_remove(self) -> None:
        self.remove_requested.emit()
        page = self.sender()
        assert isinstance(page, FoldersPage)
        page.show_kept(self._kept())

    def _add_pages(self) -> list[Callable[[], QWidget]]:
        """Add the page names and an empty area for each; return the page factories in order."""
        sections = dict.fromkeys(entry.section for entry in declared().values())
        pages: list[tuple[str, Callable[[], QWidget]]] = [
            (QCoreApplication.translate("Settings", section), partial(self._section, section)) for section in sections
        ]
        pages += [
            (self.tr("Data folders"), self._folders_page),
            (self.tr("What goes online"), partial(OnlinePage, self._theme)),
            (self.tr("Log"), self._log_page),
        ]
        for name, _ in pages:
            self._stack.addWidget(ScrollPane(self._theme, name))
            self.pages.addItem(name)
        return [make for _, make in pages]

    def _folders_page(self) -> QWidget:
        page = FoldersPage(self._theme, self._folders, self._kept())
        page.remove_requested.connect(self._on_remove)
        page.open_requested.connect(self.open_requested)
        return page

    def _log_page(self) -> QWidget:
        page = LogPage(self._theme, self._log_path, self._diagnostics)
        page.open_requested.connect(self.open_requested)
        return page

    def _framed(self, name: str, page: QWidget) -> QWidget:
        """Put a page under its heading."""
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(GROUP)
        heading = QLabel(name)
        heading.setFont(self._theme.font("heading2"))
        column.addWidget(heading)
        column.addWidget(page, 1)
        return inside

    def _lay_out(self) -> None:
        right = QVBoxLayout()
        right.setContentsMargins(0, 0, 0, 0)
        right.setSpacing(0)
        right.addWidget(self._problems)
        right.addWidget(self._stack, 1)
        left = QVBoxLayout()
        left.setContentsMargins(0, GROUP, 0, GROUP)
        left.addWidget(self.pages)
        whole = QHBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addLayout(left)
        whole.addLayout(right, 1)

    @Slot(str, object)
    def _on_change(self, name: str, value: object) -> None:
        self._settings = with_value(self._settings, name, value)
        self._enable_custom()
        self.changed.emit(self._settings, name)

    @Slot(int)
    def _on_page(self, row: int) -> None:
        self._stack.setCurrentIndex(row)
        area = self._stack.currentWidget()
        if isinstance(area, ScrollPane) and area.widget() is None:
            page = self._makers[row]()
            if not isinstance(page, OnlinePage):
                area.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # it scrolls to the field that has focus
            area.setWidget(self._framed(self.pages.item(row).text(), page))
            self._enable_custom()
        if area is not None and (log := area.findChild(LogPage)):
            log.refresh()

    def _enable_custom(self) -> None:
        """Enable the single sampling values for the preset "custom" only."""
        for name in self.fields.keys() & {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}:
            self.fields[name].setEnabled(self._settings.sampling_preset == "custom")

    @Slot()
    def _on_theme(self) -> None:
        c = self._theme.colours
        self.pages.setFont(self._theme.font())
        self.pages.setFixedWidth(self._theme.grown(LIST_WIDTH))
        self.pages.setStyleSheet(list_style(c))
        self._problems.setStyleSheet(f"color: {c.warn}; background: {c.side}; padding: {RELATED}px {EDGE}px;")
        self.update()
