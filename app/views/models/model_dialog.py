"""The model dialog: models on this computer, recommended ones, and the Hub, each with a verdict before the download.

Talks only to `Catalog` and `Downloads`, which do all slow work in threads.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from PySide6.QtCore import QItemSelection, Qt, QUrl, Signal, Slot
from PySide6.QtGui import QDesktopServices, QKeyEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QWidget

from app.catalog.catalog import Catalog, Details
from app.catalog.downloads import Downloads, Transfer
from app.catalog.recommended import Recommended
from app.i18n.formatting import format_bytes
from app.settings.theme import Theme
from app.views.models import words
from app.views.models.frame import ModelDialogFrame
from app.views.models.model_list import Collection
from app.views.models.removal import Removal
from app.views.models.rows import Row
from app.views.models.search import ModelSearch
from core.errors import HeteGenError
from core.hub.fit import Fit, Wishes
from core.hub.installed import Installed, Verification
from core.hub.listing import ModelInfo, Reference


class ModelDialog(ModelDialogFrame):
    """The dialog's behaviour.

    Signals: `chosen(path or id)` to load a model; `link(address)` pressed in a model card; `remote_wished` to use a
    model on another computer instead.
    """

    chosen = Signal(str)
    link = Signal(str)
    remote_wished = Signal()

    def __init__(
        self,
        theme: Theme,
        catalog: Catalog,
        downloads: Downloads,
        recommended: tuple[Recommended, ...],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(theme, parent)
        self._catalog, self._downloads = catalog, downloads
        self.collection = Collection(recommended)
        self._rebuilding = False
        self._found = ModelSearch(catalog, self)
        self.removal = Removal(catalog, downloads, self)
        self._connect()
        self._rebuild()

    def open_at(self, text: str) -> None:
        """Show the dialog and search for `text`, if any."""
        if text:
            self.search.setText(text)
        self.show()
        self.raise_()
        self.search.setFocus()

    def current(self) -> Row | None:
        """Return the selected model."""
        return self.rows.row(self.list.currentIndex())

    def _connect(self) -> None:
        found = self._found
        found.cleared.connect(self._on_cleared)
        found.named.connect(self._on_named)
        found.found.connect(self._on_found)
        self.add.clicked.connect(self._on_add)
        self.list.selectionModel().selectionChanged.connect(self._on_selected)
        self.list.entered_on.connect(self._on_activated)
        self.list.toggled.connect(self._toggle)
        self.delegate.toggled.connect(self._toggle)
        details, catalog = self.details, self._catalog
        details.pressed.connect(self._on_pressed)
        details.wished.connect(self._on_wish)
        details.files.picked.connect(self._on_file_chosen)
        details.token_given.connect(self._on_token)
        details.link.connect(self.link)
        details.outgrown.connect_wished.connect(self.remote_wished)
        catalog.listed.connect(self._on_listed)
        catalog.detailed.connect(self._on_detailed)
        catalog.fit_found.connect(self._on_fit_found)
        catalog.verified.connect(self._on_verified)
        catalog.removed.connect(self._on_removed)
        catalog.trusted.connect(self._on_trusted)
        catalog.failed.connect(self._on_failed)
        self._downloads.changed.connect(self._on_transfer)
        token = self.token
        token.asked.connect(catalog.ask_token)
        token.token_given.connect(self._on_token)
        token.forgotten.connect(catalog.forget_token)
        catalog.token_known.connect(token.show_source)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._catalog.refresh()
        self._catalog.preview(list(self.collection.recommended.values()), [])
        self.search.setFocus()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if self.search.hasFocus() and event.key() in (Qt.Key.Key_Down, Qt.Key.Key_PageDown):
            self.list.setFocus()
            if self.current() is None:
                self.list.setCurrentIndex(self.rows.first())
            return
        super().keyPressEvent(event)

    def _rebuild(self) -> None:
        """Rebuild the list, keeping the selection."""
        chosen = self.details.shown
        rows = self.collection.sections(self._downloads)
        self._rebuilding = True
        self.rows.set_rows([self.tr(row) if isinstance(row, str) else row for row in rows])
        self._rebuilding = False
        self._select(chosen)

    def _select(self, id: str) -> None:
        """Select this model if it is in the list. Never select another instead: looking at a model queries the Hub."""
        self.list.setCurrentIndex(self.rows.index_of(id))
        self._on_selected()

    def _look(self, row: Row) -> None:
        id, _, file = row.id.partition(":")
        # A repository of files is inspected as a whole, whichever file is installed.
        here = row.here if row.here and row.here.id == row.id else None
        self._catalog.look(Reference(id, file=file), here, row.known, self.details.wishes())

    def _download(self, row: Row) -> None:
        if row.model:
            self._downloads.start(row.model)

    @Slot(str)
    def _toggle(self, id: str) -> None:
        row = self.rows.row(self.rows.index_of(id))
        if row is not None and row.transfer is not None and row.transfer.is_active:
            self._downloads.pause(row.model)
        elif row is not None and row.is_loading:
            self._download(row)

    @Slot(str)
    def _on_pressed(self, button: str) -> None:
        row = self.current()
        if row is None:
            return
        match button:
            case "use":
                self._on_activated()
            case "download" | "resume" | "retry":
                self._download(row)
            case "pause":
                self._downloads.pause(row.model)
            case "repair" if row.here:
                self._downloads.start(row.model, row.here.revision)
            case "verify" if row.here:
                self.details.show_note(self.tr("Checking the files…"))
                self._catalog.verify(row.here)
            case "folder" if row.here:
                path = row.here.path
                QDesktopServices.openUrl(QUrl.fromLocalFile(str(path.parent if path.is_file() else path)))
            case "cancel" | "remove":
                self.removal.ask(row)

    @Slot()
    def _on_cleared(self) -> None:
        self.collection.found = None
        self._rebuild()

    @Slot(object)
    def _on_named(self, exact: Reference) -> None:
        self.details.files.wanted = exact.file
        self.collection.found = [ModelInfo(exact.id)]
        self._rebuild()
        self._select(exact.id)

    @Slot(object)
    def _on_found(self, models: list[ModelInfo]) -> None:
        self.collection.set_found(models)
        self._rebuild()

    @Slot()
    def _on_add(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, self.tr("Choose the folder of a model")):
            self._catalog.add_folder(Path(path))

    @Slot(QItemSelection, QItemSelection)
    def _on_selected(self, *_: object) -> None:
        if self._rebuilding:
            return
        row, before = self.current(), self.details.shown
        self.details.show_row(row)
        if row is not None and row.id != before:
            self._look(row)

    @Slot()
    def _on_activated(self) -> None:
        row = self.current()
        if row is not None and row.is_whole and row.here is not None:
            self.chosen.emit(str(row.here.path))
            self.accept()
        elif row is not None and not row.is_loading:
            self._download(row)

    @Slot(object)
    def _on_wish(self, wishes: Wishes) -> None:
        self._catalog.check_fit(wishes)

    @Slot(str)
    def _on_token(self, value: str) -> None:
        self.details.show_note(self.tr("Trying with the token…"))
        self._catalog.use_token(value)

    @Slot()
    def _on_trusted(self) -> None:
        row = self.current()
        if row is None:
            return
        self._look(row)
        if row.transfer is not None and row.transfer.phase == "failed":
            self._download(row)

    @Slot(object)
    def _on_listed(self, models: tuple[Installed, ...]) -> None:
        self.collection.set_installed(models)
        cache = self._catalog.cache.root
        root = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), cache)
        self.place.setText(
            self.tr("Models are kept in {}; {} are free.").format(cache, format_bytes(shutil.disk_usage(root).free))
        )
        self._rebuild()

    @Slot(object)
    def _on_detailed(self, details: Details) -> None:
        if details.info is not None:
            self.collection.keep(details.info)
        self.details.show_details(details, self.collection.files_here(details.id, self._downloads))
        if details.choices:
            self._on_file_chosen()
        elif details.config:
            self.collection.choose(details.id, details.id)
            self._change(details.id)
        if details.fit is not None and self.details.wishes() == Wishes():
            self._on_fit_found(details.id, details.fit)

    @Slot()
    def _on_file_chosen(self) -> None:
        """Let the repository's row stand for the file chosen beside it."""
        id, judged = self.details.shown, self.details.files.chosen
        if judged is None:
            return
        self.collection.choose(id, Reference(id, file=judged.choice.path).name)
        if judged.fit is not None and self.details.wishes() == Wishes():
            self.collection.keep_fit(id, judged.fit)
        self._change(id)

    @Slot(str, object)
    def _on_fit_found(self, id: str, fit: Fit) -> None:
        self.collection.keep_fit(id, fit)
        self._change(id)
        # Put the best models for this machine first, unless somebody is reading the list already.
        if self.collection.is_judged and not self.details.shown:
            self._rebuild()

    def _change(self, id: str) -> None:
        """Update a model's row and details."""
        row = self.collection.row(id, self._downloads)
        self.rows.change(row)
        if self.details.shown == id:
            self.details.show_row(row)

    @Slot(object)
    def _on_transfer(self, transfer: Transfer) -> None:
        before = self.rows.row(self.rows.index_of(transfer.id))
        for id in dict.fromkeys((transfer.id, transfer.id.partition(":")[0])):
            self._change(id)
        if before is None or before.transfer is None or before.transfer.phase != transfer.phase:
            # Its position in the list may change, and so has what is on the disk.
            self._rebuild()
            self._catalog.refresh()

    @Slot(str, object)
    def _on_verified(self, id: str, found: Verification) -> None:
        row = self.current()
        if row is None or row.model != id:
            return
        if found.is_sound:
            checked = format_bytes(found.checked_bytes)
            self.details.show_note(self.tr("All files are sound: {} checked.").format(checked))
        else:
            self.details.show_note("", words.damage(found))

    @Slot(str, int)
    def _on_removed(self, id: str, freed: int) -> None:
        self.say(self.tr("{} was removed; {} are free again.").format(id, format_bytes(freed)))

    @Slot(str, object)
    def _on_failed(self, topic: str, error: HeteGenError) -> None:
        if topic != "search":
            self.details.show_note("", error)
