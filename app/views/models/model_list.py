"""The model dialog's list: from everything known of models to headings and rows. No widgets."""

from __future__ import annotations

from collections.abc import Sequence

from app.catalog.downloads import Downloads
from app.catalog.recommended import Recommended
from app.views.models.rows import Row
from core.hub.fit import Fit
from core.hub.installed import Installed
from core.hub.listing import ModelInfo
from core.spec import COMFORTABLE_TOK_S

HERE, UNFINISHED, RECOMMENDED, FOUND = "On this computer", "Downloads", "Recommended", "On the Hub"


class Collection:
    """Models by name: installed, recommended and found. `found` is None unless a search is active."""

    def __init__(self, recommended: Sequence[Recommended]) -> None:
        self.recommended = {entry.id: entry for entry in recommended}
        self.found: list[ModelInfo] | None = None
        self._installed: dict[str, Installed] = {}
        self._infos: dict[str, ModelInfo] = {}
        self._fits: dict[str, Fit] = {}
        self._chosen: dict[str, str] = {}

    def set_installed(self, models: Sequence[Installed]) -> None:
        """Set the models on this disk. The first of several versions counts, which is the best."""
        self._installed = {model.id: model for model in reversed(models)}

    def set_found(self, models: Sequence[ModelInfo]) -> None:
        """Set the results of a search."""
        self.found = list(models)
        self._infos.update((info.id, info) for info in models)

    def keep(self, info: ModelInfo) -> None:
        """Store facts about one model."""
        self._infos[info.id] = info

    def keep_fit(self, id: str, fit: Fit) -> None:
        """Store a model's verdict."""
        self._fits[id] = fit

    def choose(self, id: str, model: str) -> None:
        """Set which of a repository's GGUF files its row stands for."""
        self._chosen[id] = model

    def files_here(self, id: str, downloads: Downloads) -> list[str]:
        """List the files of a repository that are downloaded or downloading."""
        names = [*downloads.unfinished(), *self._installed]
        return [name.partition(":")[2] for name in names if name.startswith(f"{id}:")]

    def sections(self, downloads: Downloads) -> list[str | Row]:
        """Return headings and rows in list order."""
        if self.found is not None:
            parts = [(FOUND, [info.id for info in self.found])]
        else:
            begun = self._begun(downloads)
            here = [id for id, model in self._installed.items() if model.complete and id not in begun]
            rest = [id for id in self._ranked() if id not in self._installed and id not in begun]
            parts = [(UNFINISHED, begun), (HERE, sorted(here, key=str.lower)), (RECOMMENDED, rest)]
        rows: list[str | Row] = []
        for heading, ids in parts:
            rows += [heading, *(self.row(id, downloads) for id in ids)] if ids else []
        return rows

    def row(self, id: str, downloads: Downloads) -> Row:
        """Return what is known of one model."""
        info = self._infos.get(id)
        model = self._chosen.get(id, "" if info is not None and info.gguf_only else id)
        return Row(
            id,
            self._installed.get(model),
            self.recommended.get(id),
            info,
            self._fits.get(id),
            downloads.transfer(model),
            model,
        )

    @property
    def is_judged(self) -> bool:
        """Whether every recommended model has a verdict."""
        return self.recommended.keys() <= self._fits.keys()

    def _ranked(self) -> list[str]:
        """Rank recommended models: smallest first, or, once all are judged, the best that run well here first."""
        if not self.is_judged:
            return list(self.recommended)
        return sorted(self.recommended, key=lambda id: _rank(self._fits[id], self.recommended[id].parameters))

    def _begun(self, downloads: Downloads) -> list[str]:
        """List begun downloads: those of this run, then those that an earlier run left."""
        running = downloads.unfinished()
        return [*running, *(id for id, model in self._installed.items() if not model.complete and id not in running)]


def _rank(fit: Fit, parameters: int) -> tuple[int, int]:
    """Rank larger models higher among those that run well; among the others, smaller ones are closer to it."""
    if fit.kind in ("fits", "cpu_help") and fit.tok_s.low >= COMFORTABLE_TOK_S:
        return 0, -parameters
    return (2 if fit.kind == "no" else 1), parameters
