"""The model dialog and what it needs: Hub access, cache, downloads and the fit check. Built when first opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.catalog.recommended import recommended
from app.settings.settings import Settings
from app.settings.theme import Theme
from app.system.paths import Places
from core.events import LoadOptions
from core.hub.environment import HubEnvironment, hub_environment
from core.paths import assets

if TYPE_CHECKING:
    from app.catalog.catalog import Catalog
    from app.catalog.downloads import Downloads
    from app.views.models.model_dialog import ModelDialog
    from core.hub.fit import Fit, FitCheck, Tensors, Wishes

MEGABYTE = 1e6


class _Built(NamedTuple):
    """What exists once the dialog was opened."""

    catalog: Catalog
    downloads: Downloads
    dialog: ModelDialog


class ModelController(QObject):
    """Opens the model dialog and applies changed settings to it.

    Signals: `chosen(path)` of a model to load; `link(address)` pressed in a model card; `remote_wished` to use a model
    on another computer.
    """

    chosen = Signal(str)
    link = Signal(str)
    remote_wished = Signal()

    def __init__(
        self,
        theme: Theme,
        places: Places,
        settings: Callable[[], Settings],
        options: Callable[[], LoadOptions],
        window: QWidget,
    ) -> None:
        super().__init__()
        self._theme, self._places, self._window = theme, places, window
        self._settings, self._options = settings, options
        self._built: _Built | None = None
        self._made_for: HubEnvironment | None = None
        self._left: list[Catalog] = []
        """Catalogs of former settings whose threads still wait for a server."""

    @Slot()
    def open(self) -> None:
        """Show the dialog."""
        self.open_at("")

    @Slot(str)
    def open_at(self, text: str) -> None:
        """Show the dialog and search for this model or text."""
        if self._built is None:
            self._build()
        if self._built is not None:
            self._built.dialog.open_at(text)

    @Slot(object)
    def on_settings(self, settings: Settings) -> None:
        """Apply the rate limit at once, and another folder or address the next time the dialog opens."""
        if self._built is None:
            return
        self._built.downloads.limit(_bytes_s(settings))
        if environment(settings, os.environ) != self._made_for and not self._built.downloads.busy:
            self._leave()

    @Slot()
    def after_sleep(self) -> None:
        """Resume the downloads that lost the network."""
        if self._built is not None:
            self._built.downloads.resume_interrupted()

    @Slot()
    def close(self) -> None:
        """Pause downloads and join all threads."""
        self._leave()
        for catalog in self._left:
            catalog.close()
        self._left.clear()

    def _leave(self) -> None:
        """Close the dialog and its services; joining a thread that waits for a server would block the window."""
        if self._built is None:
            return
        built, self._built = self._built, None
        built.dialog.close()
        built.dialog.deleteLater()
        built.downloads.close()
        built.catalog.leave()
        self._left.append(built.catalog)

    def _build(self) -> None:
        for catalog in [one for one in self._left if one.ended]:
            catalog.close()
            self._left.remove(catalog)
        # Imported late: most starts never open it, and importing it would delay the window by 50 ms.
        from app.catalog.catalog import Catalog
        from app.catalog.downloads import Downloads
        from app.views.models.model_dialog import ModelDialog
        from core.hub.access import Access
        from core.hub.cache_layout import Cache
        from core.hub.folders import Folders
        from core.keyring import system_keyring

        settings = self._settings()
        self._made_for = environment(settings, os.environ)
        access = Access(self._made_for, system_keyring())
        cache = Cache(self._made_for.cache, self._made_for.symlinks)
        catalog = Catalog(
            access, cache, Folders(self._places.data / "model-folders.json"), late_fit_check(self._options)
        )
        downloads = Downloads(access, cache, _bytes_s(settings))
        dialog = ModelDialog(self._theme, catalog, downloads, recommended(assets()), self._window)
        dialog.chosen.connect(self._on_chosen)
        dialog.link.connect(self.link)
        dialog.remote_wished.connect(self._on_remote)
        self._built = _Built(catalog, downloads, dialog)

    @Slot()
    def _on_remote(self) -> None:
        if self._built is not None:
            self._built.dialog.hide()
        self.remote_wished.emit()

    @Slot(str)
    def _on_chosen(self, source: str) -> None:
        if self._built is not None:
            self._built.dialog.hide()
        self.chosen.emit(source)


def environment(settings: Settings, variables: Mapping[str, str]) -> HubEnvironment:
    """Return the Hub environment variables, overridden by the settings."""
    found = hub_environment(variables)
    if settings.hf_endpoint:
        found = replace(found, endpoint=settings.hf_endpoint.rstrip("/"))
    if settings.models_folder:
        found = replace(found, cache=Path(settings.models_folder).expanduser())
    return found


def late_fit_check(options: Callable[[], LoadOptions]) -> FitCheck:
    """Return a fit check that imports torch and measures the machine on its first call."""
    made: list[FitCheck] = []
    lock = Lock()

    def check_fit(config: Mapping[str, Any], tensors: Tensors, wishes: Wishes) -> Fit:
        with lock:
            if not made:
                made.append(_fit_checker(options()))
        return made[0](config, tensors, wishes)

    return check_fit


def _fit_checker(options: LoadOptions) -> FitCheck:
    from core.hardware.machine import open_machine
    from core.paths import cache_folder
    from core.runtime.fit import FitChecker

    machine = open_machine(cache_folder(), options.simulate_gpu, options.threads)
    return FitChecker(machine.now, options)


def _bytes_s(settings: Settings) -> float | None:
    limit = settings.download_limit_mb_s
    return limit * MEGABYTE if limit else None
