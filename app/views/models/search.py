"""The model dialog's search: text is sent to the Hub after a pause in typing; full names are shown at once."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal, Slot

from app.catalog.catalog import Catalog
from app.i18n.translator import said_error, tr
from app.views.models.frame import ModelDialogFrame
from core.errors import BadRequest, HeteGenError
from core.hub.listing import ModelInfo, Page, Reference, parse_reference

SEARCH_MS = 350


class ModelSearch(QObject):
    """Searches as the user types.

    Signals: `found(list[ModelInfo])`, all results so far; `named(Reference)` for a full name; `cleared` for an empty
    field.
    """

    found = Signal(object)
    named = Signal(object)
    cleared = Signal()

    def __init__(self, catalog: Catalog, dialog: ModelDialogFrame) -> None:
        super().__init__(dialog)
        self._catalog, self._dialog = catalog, dialog
        self._results: list[ModelInfo] = []
        self._following = ""
        """Address of the next page of results; "" after the last one."""
        self._searches = False
        """Whether results are shown, or awaited; those of an earlier search may arrive after its words have gone."""
        self._delay = QTimer(self, singleShot=True, interval=SEARCH_MS)
        self._delay.timeout.connect(self._on_search)
        dialog.search.textChanged.connect(self._on_typed)
        dialog.search.returnPressed.connect(self._on_search)
        dialog.sort.currentIndexChanged.connect(self._on_search)
        dialog.again.clicked.connect(self._on_search)
        dialog.more.clicked.connect(self._on_more)
        catalog.found.connect(self._on_found)
        catalog.failed.connect(self._on_failed)

    @property
    def _words(self) -> str:
        return self._dialog.search.text().strip()

    @Slot()
    def _on_typed(self) -> None:
        if self._words:
            self._delay.start()
            return
        self._delay.stop()
        self._begin()
        self.cleared.emit()

    @Slot()
    def _on_search(self) -> None:
        self._delay.stop()
        exact = exact_reference(self._words)
        if exact is not None:
            self._begin()
            self.named.emit(exact)
        elif self._words:
            # The list stays as it is until results arrive.
            self._searches = True
            self._dialog.say(tr("Searching…"))
            self._catalog.search(self._words, self._dialog.sort.currentData())

    def _begin(self) -> None:
        self._results, self._following, self._searches = [], "", False
        self._dialog.say("")
        self._dialog.more.hide()

    @Slot()
    def _on_more(self) -> None:
        self._dialog.more.hide()
        self._dialog.say(tr("Searching…"))
        self._catalog.more(self._following)

    @Slot(object, bool)
    def _on_found(self, page: Page, is_more: bool) -> None:
        if not self._searches:
            return
        self._results = [*(self._results if is_more else ()), *page.models]
        self._following = page.following
        self._dialog.more.setVisible(bool(page.following))
        self._dialog.say("" if self._results else tr("Nothing was found. Try fewer words."))
        self.found.emit(self._results)
        self._catalog.preview([], page.models)

    @Slot(str, object)
    def _on_failed(self, topic: str, error: HeteGenError) -> None:
        if topic == "search" and self._searches:
            self._dialog.say(said_error(error), can_retry=True)


def exact_reference(text: str) -> Reference | None:
    """Parse a full name (owner/name) or an address; None for words to search for."""
    if "/" not in text:
        return None
    try:
        return parse_reference(text)
    except BadRequest:
        return None
