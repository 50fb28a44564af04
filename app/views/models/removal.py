"""Removing a model: after a question, and only once no job uses its files."""

from __future__ import annotations

from PySide6.QtCore import QObject, Qt, Slot
from PySide6.QtWidgets import QMessageBox, QWidget

from app.catalog.catalog import Catalog
from app.catalog.downloads import Downloads
from app.views.models import words
from app.views.models.rows import Row
from core.hub.installed import Installed


class Removal(QObject):
    """Deletes cached models, gives up downloads, and removes folders from the list."""

    def __init__(self, catalog: Catalog, downloads: Downloads, window: QWidget) -> None:
        super().__init__(window)
        self._catalog, self._downloads, self._window = catalog, downloads, window
        self._removing: dict[str, Installed] = {}
        downloads.given_up.connect(self._on_given_up)

    def ask(self, row: Row) -> None:
        """Ask the user, then remove a model."""
        question, told, does = words.removal(row.model, row.here)
        box = QMessageBox(QMessageBox.Icon.NoIcon, self._window.windowTitle(), question, parent=self._window)
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setInformativeText(told)
        accept = box.addButton(does, QMessageBox.ButtonRole.AcceptRole)
        box.setDefaultButton(box.addButton(QMessageBox.StandardButton.Cancel))
        box.exec()
        box.deleteLater()
        if box.clickedButton() is accept:
            self.remove(row)

    def remove(self, row: Row) -> None:
        """Remove a model without asking."""
        path = self._catalog.cache.repo(row.model.partition(":")[0])
        self._removing[row.model] = row.here or Installed(row.model, "begun", path, 0, 0, complete=False)
        self._downloads.give_up(row.model)

    @Slot(str)
    def _on_given_up(self, id: str) -> None:
        if model := self._removing.pop(id, None):
            self._catalog.remove(model)
