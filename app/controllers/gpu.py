"""The page on graphics cards: finding cards, fetching the GPU runtime, trying and removing it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtWidgets import QWidget

from app.engine.task_thread import TaskThread, Tell
from app.engine.worker import EngineLike
from app.gpu.state import GpuState, Stage
from app.notices import notices
from app.settings.theme import Theme
from core.errors import HeteGenError
from core.events import Stop
from core.gpu_runtime.install import Advance, install
from core.gpu_runtime.start import Attempt, Find, Standing, maker_of_torch, own_torch
from core.gpu_runtime.store import Runtime, TrialResult
from core.gpu_runtime.trial import attempt, kernel
from core.graphics.builds import NoRuntime, choose, driver_for, maker_of
from core.graphics.card import GraphicsCard, Maker
from core.graphics.find import find_cards
from core.hub.client import Client
from core.hub.environment import hub_environment
from core.hub.partial_file import disk_error

if TYPE_CHECKING:
    from core.gpu_runtime.wheel_selection import Needed

log = logging.getLogger(__name__)


class GpuController(QObject):
    """Carries out the wishes of the graphics card page, with the slow steps in a worker thread.

    Signals: `changed(GpuState)`; `notice(Notice)`; `restart_wished`.
    """

    changed = Signal(object)
    notice = Signal(object)
    restart_wished = Signal()
    _disproved = Signal(str)

    def __init__(
        self,
        runtime: Runtime,
        standing: Standing,
        client: Callable[[], Client],
        pages: Sequence[str] = (),
        find: Find = find_cards,
        attempt: Attempt = attempt,
    ) -> None:
        """`pages`: package indexes to use instead of PyTorch's own."""
        super().__init__()
        self._runtime, self._standing, self._client, self._pages = runtime, standing, client, pages
        self._find, self._attempt = find, attempt
        self.state = GpuState()
        self._cards: tuple[GraphicsCard, ...] = ()
        self._tasks = TaskThread("gpu-runtime")
        self._then: dict[int, Callable[[object], None]] = {}
        self._job = 0
        self._before_removing: Stage = "unused"
        self._tasks.told.connect(self._on_told)
        self._tasks.done.connect(self._on_done)
        self._tasks.failed.connect(self._on_failed)
        self._disproved.connect(self._on_disproved)

    @Slot()
    def greet(self) -> None:
        """Look for cards; post a notice if one is not used."""
        if self.state.stage == "unknown":
            self._run(lambda stop, tell: tuple(self._find()), self._on_found_cards)

    def open(self, theme: Theme, parent: QWidget) -> QWidget:
        """Show the page."""
        # Imported late: most starts never open it.
        from app.views.settings.gpu_dialog import GpuDialog

        dialog = GpuDialog(theme, self.state, str(self._runtime.root), parent)
        self.changed.connect(dialog.show_state)
        dialog.wished.connect(self.act)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()
        self.greet()
        return dialog

    @Slot(str)
    def act(self, wish: str) -> None:
        """Carry out a button of the page: look, fetch, pause, try, remove or restart."""
        match wish:
            case "look":
                self._set(replace(self.state, stage="asking", error=None))
                self._run(self._look, self._on_needed)
            case "fetch":
                self._set(replace(self.state, stage="fetching", error=None))
                self._run(self._fetch, self._on_tried)
            case "try":
                self._set(replace(self.state, stage="trying", error=None))
                self._run(self._try, self._on_tried)
            case "pause":
                self._tasks.stop(self._job)
            case "remove":
                self._remove()
            case "restart":
                self.restart_wished.emit()

    def guarded(self, make: Callable[[], EngineLike]) -> Callable[[], EngineLike]:
        """Wrap the engine's factory: in the engine's thread, first prove that the runtime in use can compute."""

        def make_on_card() -> EngineLike:
            if self._standing.used:
                self._prove()
            return make()

        return make_on_card

    @Slot()
    def close(self) -> None:
        """Pause downloads and join the thread."""
        self._tasks.close()
        # Left-over callbacks would keep this object in a reference cycle, which the garbage collector may break in any
        # thread.
        self._then.clear()

    def _prove(self) -> None:
        try:
            before = self._runtime.result()
            self._runtime.set_out()
            device, why = kernel()
            driver = before.driver if before else ""
            self._runtime.keep_result(TrialResult(self._standing.version, driver, device, why))
        except OSError as error:
            log.warning("The trial of the GPU runtime is not remembered: %s", error)
            return
        log.info("The GPU runtime %s computes on %s.", self._standing.version, device or f"nothing: {why}")
        if why:
            self._disproved.emit(why)

    def _look(self, stop: Stop, tell: Tell) -> Needed:
        # Imported late, with the library for package names: few starts fetch anything.
        from core.gpu_runtime.wheel_index import PAGES, Indexes
        from core.gpu_runtime.wheel_selection import find_needed

        build, _ = choose(self._cards)
        with self._client() as client:
            return find_needed(Indexes(client, self._pages or PAGES, build.tag), build, own_torch(), stop)

    def _fetch(self, stop: Stop, tell: Tell) -> TrialResult:
        needed = self.state.needed
        assert needed is not None
        with self._client() as client:
            install(client, self._runtime, needed, tell, stop)
        tell("trying")
        return self._try(stop, tell)

    def _try(self, stop: Stop, tell: Tell) -> TrialResult:
        version = self._runtime.installed()
        result = self._attempt(self._runtime.folder(version), driver_for(version, self._cards))
        try:
            self._runtime.keep_result(result)
        except OSError as error:
            raise disk_error(error, self._runtime.root) from error
        return result

    def _remove(self) -> None:
        if self._standing.used:
            self._remove_later()
            return
        self._before_removing = self.state.stage
        self._set(replace(self.state, stage="removing", error=None))
        self._run(self._delete, self._on_removed)

    def _remove_later(self) -> None:
        try:
            self._runtime.remove_later()
        except OSError as error:
            self._set(replace(self.state, error=_not_removed(error)))
        else:
            self._set(replace(self.state, stage="leaving", error=None))

    def _delete(self, stop: Stop, tell: Tell) -> None:
        try:
            self._runtime.remove()
        except OSError as error:
            raise _not_removed(error) from error

    def _on_removed(self, nothing: object) -> None:
        self._set(self._without_runtime())

    def _run(self, work: Callable[[Stop, Tell], object], then: Callable[[object], None]) -> None:
        self._job = self._tasks.run(work)
        self._then[self._job] = then

    def _set(self, state: GpuState) -> None:
        self.state = state
        self.changed.emit(state)

    def _without_runtime(self) -> GpuState:
        """Return the state of a machine without a fetched runtime."""
        if sys.platform == "darwin":
            return GpuState("built_in")
        own = maker_of_torch()
        if own and (not self._cards or any(card.maker == own for card in self._cards)):
            return GpuState("built_in", self._card_of(own))
        try:
            _, card = choose(self._cards)
        except NoRuntime as error:
            first = next(iter(self._cards), None)
            return GpuState("hindered", first, error=error) if first else GpuState("none")
        return GpuState("offer", card)

    def _card_of(self, maker: Maker | None) -> GraphicsCard | None:
        return next((card for card in self._cards if card.maker == maker), None)

    def _on_found_cards(self, cards: object) -> None:
        assert isinstance(cards, tuple)
        self._cards = cards
        standing = self._standing
        if not standing.version:
            self._set(self._without_runtime())
            if self.state.stage == "offer" and self.state.card and not self._runtime.was_offered():
                self._runtime.mark_offered()
                self.notice.emit(notices.gpu_offered(self.state.card.name))
            return
        stage: Stage = "used" if standing.used else "trying" if standing.untried else "unused"
        size = self._runtime.installed_bytes()
        card = self._card_of(maker_of(standing.version))
        self._set(GpuState(stage, card, version=standing.version, device=standing.device, why=standing.why, size=size))
        if standing.untried:
            self._run(self._try, self._on_tried_anew)
        elif not standing.used:
            self.notice.emit(notices.gpu_unused(standing.why))

    def _on_needed(self, needed: object) -> None:
        from core.gpu_runtime.wheel_selection import Needed

        if isinstance(needed, Needed):
            self._set(replace(self.state, stage="found", needed=needed))
        else:
            self._set(replace(self.state, stage="offer"))

    def _on_tried(self, result: object) -> None:
        if not isinstance(result, TrialResult):
            self._set(replace(self.state, stage="paused"))
            return
        stage: Stage = "ready" if result.works else "unused"
        size = self._runtime.installed_bytes()
        self._set(
            replace(self.state, stage=stage, version=result.version, device=result.device, why=result.why, size=size)
        )

    def _on_tried_anew(self, result: object) -> None:
        """Report a trial that the user did not ask for: it ran because the driver has changed."""
        self._on_tried(result)
        if isinstance(result, TrialResult):
            self.notice.emit(notices.gpu_ready() if result.works else notices.gpu_unused(result.why))

    @Slot(int, object)
    def _on_told(self, ticket: int, news: object) -> None:
        if isinstance(news, Advance):
            self._set(replace(self.state, stage="fetching", advance=news))
        else:
            self._set(replace(self.state, stage="trying"))

    @Slot(int, object)
    def _on_done(self, ticket: int, result: object) -> None:
        if then := self._then.pop(ticket, None):
            then(result)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        self._then.pop(ticket, None)
        before: dict[Stage, Stage] = {
            "asking": "offer",
            "fetching": "paused",
            "trying": "unused",
            "removing": self._before_removing,
        }
        self._set(replace(self.state, stage=before.get(self.state.stage, self.state.stage), error=error))

    @Slot(str)
    def _on_disproved(self, why: str) -> None:
        self._set(replace(self.state, stage="unused", device="", why=why))
        self.notice.emit(notices.gpu_unused(why))


def _not_removed(error: OSError) -> HeteGenError:
    return HeteGenError("The GPU runtime was not removed.", f"{error.strerror or error}.")


def package_client() -> Client:
    """Return the client for Python package indexes and servers. It never sends a token."""
    return Client("https://download.pytorch.org", offline=hub_environment(os.environ).offline)
