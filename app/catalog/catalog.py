"""The models a user can choose: on this disk, recommended, or found on the Hub.

Requests run in worker threads; signals report their results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from app.catalog.recommended import Recommended
from app.engine.task_thread import TaskThread, Tell
from core.errors import HeteGenError
from core.events import Stop
from core.hub.access import Access
from core.hub.cache_layout import Cache
from core.hub.fit import Fit, FitCheck, Tensors, Wishes
from core.hub.folders import Folders
from core.hub.gguf_choices import Judged, gguf_only
from core.hub.gguf_header import judge, with_verdict
from core.hub.installed import Installed, Verification, installed, verify
from core.hub.listing import (
    Listing,
    ModelInfo,
    Page,
    Reference,
    Sort,
    list_files,
    model_info,
    next_page,
    read_card,
    search,
    without_head,
)
from core.hub.remote_spec import read_config, read_listed, read_local
from core.hub.removal import discard, remove
from core.hub.retry import Stopped

OnResult = Callable[[Any], None]


@dataclass(frozen=True)
class Details:
    """What is known of one model so far.

    `choices`: the GGUF files of a repository with several models, each with a verdict. `error`: why no more is known.
    `asking`: whether more is on its way.
    """

    id: str
    info: ModelInfo | None = None
    card: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    download_bytes: int = 0
    choices: tuple[Judged, ...] = ()
    fit: Fit | None = None
    error: HeteGenError | None = None
    asking: bool = True


class Catalog(QObject):
    """Lists, searches, inspects, verifies and removes models.

    Signals: `listed(tuple of Installed)`; `found(Page, is_more)`; `detailed(Details)`, repeated as more becomes known;
    `fit_found(id, Fit)` for list rows; `verified(id, Verification)`; `removed(id, bytes)`; `trusted` once a token is in
    use; `token_known(source)`; `failed(lane, error)`, with the lane "search", "details", "rows" or "disk".
    """

    listed = Signal(object)
    found = Signal(object, bool)
    detailed = Signal(object)
    fit_found = Signal(str, object)
    verified = Signal(str, object)
    removed = Signal(str, int)
    trusted = Signal()
    token_known = Signal(str)
    failed = Signal(str, object)

    def __init__(self, access: Access, cache: Cache, folders: Folders, check_fit: FitCheck | None = None) -> None:
        super().__init__()
        self.cache = cache
        self._access, self._folders, self._check_fit = access, folders, check_fit
        self._lanes = {name: TaskThread(name) for name in ("search", "details", "rows", "disk")}
        self._awaited: dict[tuple[str, int], OnResult] = {}
        for name, tasks in self._lanes.items():
            tasks.setObjectName(name)
            tasks.told.connect(self._on_told)
            tasks.done.connect(self._on_done)
            tasks.failed.connect(self._on_failed)
        self._details = Details("")

    def close(self) -> None:
        """Stop and join all threads."""
        self.leave()
        for tasks in self._lanes.values():
            tasks.close()
        self._access.close()

    def leave(self) -> None:
        """Stop without joining: a server that does not answer can keep a thread for a while."""
        for tasks in self._lanes.values():
            tasks.leave()

    @property
    def ended(self) -> bool:
        """Whether all threads have ended."""
        return all(tasks.ended for tasks in self._lanes.values())

    def refresh(self) -> None:
        """List the models on this disk."""
        self._run("disk", lambda stop, tell: (*installed(self.cache), *self._folders.installed()), self.listed.emit)

    def search(self, text: str, sort: Sort) -> None:
        """Search the Hub, cancelling an earlier search."""

        def work(stop: Stop, tell: Tell) -> Page:
            return search(self._access.client(), text, sort, stop=stop)

        self._lanes["search"].stop_all()
        self._run("search", work, self._on_first_page)

    def more(self, following: str) -> None:
        """Fetch the next page of the last search."""
        self._run("search", lambda stop, tell: next_page(self._access.client(), following, stop), self._on_next_page)

    def look(self, reference: Reference, here: Installed | None, known: Recommended | None, wishes: Wishes) -> None:
        """Inspect one model, on the disk if it is complete there, else on the Hub. Cancels an earlier inspection."""
        self._lanes["details"].stop_all()
        self._details = Details(reference.name)
        if here is not None and here.complete:
            self._run("details", lambda stop, tell: self._look_here(here, wishes, tell), self._on_details)
        else:
            self._run("details", lambda stop, tell: self._ask(reference, known, wishes, stop, tell), self._on_details)

    def check_fit(self, wishes: Wishes) -> None:
        """Judge the same model again with other wishes."""
        details = self._details
        if (details.config or details.choices) and not details.asking:
            self._lanes["details"].stop_all()
            self._run("details", lambda stop, tell: self._with_verdict(details, wishes), self._on_details)

    def preview(self, recommended: Sequence[Recommended], found: Sequence[ModelInfo]) -> None:
        """Judge the rows of a list in order, cancelling an earlier list."""
        self._lanes["rows"].stop_all()
        if self._check_fit is not None:
            self._run("rows", lambda stop, tell: self._preview(recommended, found, stop, tell), _ignore)

    def verify(self, model: Installed) -> None:
        """Read all files of a model and compare their checksums."""

        def work(stop: Stop, tell: Tell) -> tuple[str, Verification]:
            return model.id, verify(self.cache, model.id, model.revision, stop=stop)

        self._run("disk", work, self._on_verified)

    def remove(self, model: Installed) -> None:
        """Delete a cached model. A folder outside the cache is only removed from the list."""

        def work(stop: Stop, tell: Tell) -> tuple[str, int]:
            if not model.revision:
                self._folders.remove(model.path)
                return model.id, 0
            return model.id, remove(self.cache, model.id) if model.complete else discard(self.cache, model.id)

        self._run("disk", work, self._on_removed)

    def add_folder(self, folder: Path) -> None:
        """Add a folder of safetensors, used in place."""
        self._run("disk", lambda stop, tell: self._folders.add(folder), self._on_changed)

    def use_token(self, value: str) -> None:
        """Use a token and store it in the keyring."""

        def work(stop: Stop, tell: Tell) -> bool:
            self._access.use_token(value)
            return True

        self._run("disk", work, self._on_token)

    def ask_token(self) -> None:
        """Find out where the token comes from. Runs in a thread because a keyring can be slow."""
        self._run("disk", lambda stop, tell: self._access.token_source(), self.token_known.emit)

    def forget_token(self) -> None:
        """Delete the stored token from the keyring."""

        def work(stop: Stop, tell: Tell) -> bool:
            self._access.forget_token()
            return True

        self._run("disk", work, _ignore)

    def _run(self, tasks: str, work: Callable[[Stop, Tell], object], then: OnResult) -> None:
        ticket = self._lanes[tasks].run(work)
        self._awaited[tasks, ticket] = then

    def _ask(self, reference: Reference, known: Recommended | None, wishes: Wishes, stop: Stop, tell: Tell) -> Details:
        """Fetch facts, card and headers, then judge; report each step as soon as it is known."""
        details = Details(reference.name)
        try:
            client = self._access.client()
            info = model_info(client, reference, stop)
            details = replace(details, info=info)
            tell(details)
            details = replace(details, card=self._card(reference.id, info.revision, stop))
            tell(details)
            listing = list_files(client, reference.id, info.revision, stop)
            if not reference.file and gguf_only(listing):
                return self._with_choices(details, listing, wishes, stop, tell)
            remote = read_listed(client, info, listing, reference.file, stop)
            size = remote.download_bytes
            details = replace(details, config=remote.config, tensors=remote.tensors, download_bytes=size)
        except HeteGenError as error:
            details = replace(details, error=error)
        if not details.config and known is not None:
            details = replace(details, config=known.config, download_bytes=known.download_bytes)
        return self._with_verdict(details, wishes)

    def _with_choices(self, details: Details, listing: Listing, wishes: Wishes, stop: Stop, tell: Tell) -> Details:
        """Judge the GGUF files of a repository and report each verdict as it is found."""
        if self._check_fit is not None:
            for judged in judge(self._access.client(), listing, self._check_fit, wishes, stop):
                details = replace(details, choices=(*details.choices, judged))
                tell(details)
        return replace(details, asking=False)

    def _card(self, id: str, commit: str, stop: Stop) -> str:
        if stop():
            raise Stopped
        try:
            return read_card(self._access.client(), id, commit)
        except HeteGenError:
            # Many models have no card, and a gated model does not show it. Go on with the rest.
            return ""

    def _look_here(self, here: Installed, wishes: Wishes, tell: Tell) -> Details:
        details = Details(here.id, card=_card_here(here), download_bytes=here.total)
        tell(details)
        try:
            config, tensors = read_local(here.path)
        except HeteGenError as error:
            return replace(details, error=error, asking=False)
        return self._with_verdict(replace(details, config=config, tensors=tensors), wishes)

    def _with_verdict(self, details: Details, wishes: Wishes) -> Details:
        if self._check_fit is not None and details.choices:
            check_fit = self._check_fit
            choices = tuple(with_verdict(one, check_fit, wishes) for one in details.choices)
            return replace(details, choices=choices, asking=False)
        if self._check_fit is None or not details.config:
            return replace(details, asking=False)
        try:
            fit = self._check_fit(details.config, details.tensors, wishes)
        except HeteGenError as error:
            return replace(details, fit=None, error=details.error or error, asking=False)
        return replace(details, fit=fit, asking=False)

    def _preview(self, recommended: Sequence[Recommended], found: Sequence[ModelInfo], stop: Stop, tell: Tell) -> None:
        assert self._check_fit is not None
        # A repository with several GGUF files has no single verdict before one of them is inspected.
        for id in [entry.id for entry in recommended] + [info.id for info in found if not info.gguf_only]:
            if stop():
                return
            known = next((entry.config for entry in recommended if entry.id == id), None)
            try:
                config = known or read_config(self._access.client(), id)
                tell((id, self._check_fit(config, {}, Wishes())))
            except HeteGenError:
                # The row shows that it has no verdict; the details give the reason.
                continue

    @Slot(int, object)
    def _on_told(self, ticket: int, news: Any) -> None:
        if self.sender().objectName() == "rows":
            self.fit_found.emit(*news)
        else:
            self._on_details(news)

    @Slot(int, object)
    def _on_done(self, ticket: int, result: object) -> None:
        then = self._awaited.pop((self.sender().objectName(), ticket))
        if result is not None:
            then(result)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        tasks = self.sender().objectName()
        then = self._awaited.pop((tasks, ticket))
        self.failed.emit(tasks, error)
        if then == self._on_token:
            # The token could not be stored, but it is in use.
            self.trusted.emit()

    def _on_first_page(self, page: Page) -> None:
        self.found.emit(page, False)

    def _on_next_page(self, page: Page) -> None:
        self.found.emit(page, True)

    def _on_details(self, details: Details) -> None:
        if details.id == self._details.id:
            self._details = details
            self.detailed.emit(details)

    def _on_verified(self, result: tuple[str, Verification]) -> None:
        self.verified.emit(*result)
        self.refresh()

    def _on_removed(self, result: tuple[str, int]) -> None:
        self.removed.emit(*result)
        self.refresh()

    def _on_token(self, _: object) -> None:
        self.trusted.emit()

    def _on_changed(self, _: object) -> None:
        self.refresh()


def _ignore(_: object) -> None:
    return


def _card_here(here: Installed) -> str:
    file = here.id.partition(":")[2] if here.revision else ""
    folder = here.path.parents[file.count("/")] if file else here.path
    try:
        return without_head((folder / "README.md").read_text("utf-8", errors="replace"))
    except OSError:
        return ""
