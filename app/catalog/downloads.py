"""Downloads as the window shows them: queued, running, paused, failed or done. One model downloads at a time.

The state of each download is a frozen record. Downloads that an earlier run left unfinished are listed by `catalog`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from PySide6.QtCore import QObject, Signal, Slot

from app.engine.task_thread import TaskThread, Tell, Work
from core.errors import DiskFull, HeteGenError, NetworkError
from core.events import Stop
from core.hub.access import Access
from core.hub.cache_layout import Cache
from core.hub.download import Downloaded, download
from core.hub.downloader import DownloadOptions
from core.hub.listing import Reference, parse_reference
from core.hub.progress import Pace, Progress

Phase = Literal["queued", "running", "paused", "failed", "done"]


@dataclass(frozen=True)
class Transfer:
    """The state of one download.

    `id` also names the file if the model is a GGUF file. `progress` is None until something is known. `error` says why
    the download failed, or why it paused by itself.
    """

    id: str
    phase: Phase
    progress: Progress | None = None
    error: HeteGenError | None = None

    @property
    def is_active(self) -> bool:
        """Whether the download runs or is queued."""
        return self.phase in ("queued", "running")


class Downloads(QObject):
    """The queue of downloads, worked off in a worker thread.

    Signals: `changed(Transfer)` at every step of a download; `given_up(id)` once no job uses its files any more.
    """

    changed = Signal(object)
    given_up = Signal(str)

    def __init__(self, access: Access, cache: Cache, bytes_s: float | None = None) -> None:
        super().__init__()
        self._access, self._cache = access, cache
        self._pace = Pace(bytes_s)
        self._tasks = TaskThread("downloads")
        self._transfers: dict[str, Transfer] = {}
        self._tickets: dict[int, str] = {}
        self._leaving: set[str] = set()
        self._tasks.told.connect(self._on_told)
        self._tasks.done.connect(self._on_done)
        self._tasks.failed.connect(self._on_failed)

    def transfer(self, id: str) -> Transfer | None:
        """Return the state of a model's download in this run of the program."""
        return self._transfers.get(id)

    def unfinished(self) -> list[str]:
        """List the downloads of this run that are not done, oldest first."""
        return [id for id, transfer in self._transfers.items() if transfer.phase != "done"]

    @property
    def busy(self) -> bool:
        """Whether a download runs or is queued."""
        return any(transfer.is_active for transfer in self._transfers.values())

    def limit(self, bytes_s: float | None) -> None:
        """Set the rate shared by all downloads, effective at once; None = no limit."""
        self._pace.bytes_s = bytes_s

    def start(self, id: str, revision: str = "main") -> None:
        """Start or resume a download. `revision` pins a repair to the installed commit."""
        known = self._transfers.get(id)
        if known is not None and known.is_active:
            return
        self._tickets[self._tasks.run(self._work(replace(parse_reference(id), revision=revision)))] = id
        self._set(Transfer(id, "queued", known.progress if known else None))

    def resume_interrupted(self) -> None:
        """Resume the downloads that a network error has paused; those paused by the user stay paused."""
        for id, transfer in list(self._transfers.items()):
            if transfer.phase == "paused" and isinstance(transfer.error, NetworkError):
                self.start(id)

    def pause(self, id: str) -> None:
        """Stop soon and keep every byte."""
        known = self._transfers.get(id)
        if known is None or not known.is_active:
            return
        for ticket, owner in self._tickets.items():
            if owner == id:
                self._tasks.stop(ticket)
        self._set(replace(known, phase="paused"))

    def give_up(self, id: str) -> None:
        """Stop and forget a download. `given_up` says when its files may be deleted."""
        self.pause(id)
        self._transfers.pop(id, None)
        if id in self._tickets.values():
            self._leaving.add(id)
        else:
            self.given_up.emit(id)

    def close(self) -> None:
        """Pause all downloads and join the thread."""
        self._tasks.close()

    def _work(self, reference: Reference) -> Work:
        def work(stop: Stop, tell: Tell) -> Downloaded:
            return download(self._access.client(), self._cache, reference, tell, stop, DownloadOptions(self._pace))

        return work

    def _set(self, transfer: Transfer) -> None:
        self._transfers[transfer.id] = transfer
        self.changed.emit(transfer)

    @Slot(int, object)
    def _on_told(self, ticket: int, progress: Progress) -> None:
        id = self._tickets[ticket]
        if id in self._transfers:
            self._set(Transfer(id, "running", progress))

    @Slot(int, object)
    def _on_done(self, ticket: int, result: Downloaded | None) -> None:
        id = self._tickets.pop(ticket)
        known = self._transfers.get(id)
        if self._has_left(id) or known is None:
            return
        whole = result is not None and result.complete
        self._set(replace(known, phase="done" if whole else "paused"))

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        id = self._tickets.pop(ticket)
        if not self._has_left(id):
            # Free disk space or the network's return can cure these: pause instead of failing.
            phase: Phase = "paused" if isinstance(error, DiskFull | NetworkError) else "failed"
            self._set(Transfer(id, phase, self._progress(id), error))

    def _has_left(self, id: str) -> bool:
        """Whether an ended job must not change its model's state any more."""
        if id in self._tickets.values():
            # Paused and started again: the newer job sets the state.
            return True
        if id in self._leaving:
            self._leaving.discard(id)
            self.given_up.emit(id)
            return True
        return False

    def _progress(self, id: str) -> Progress | None:
        known = self._transfers.get(id)
        return known.progress if known else None
