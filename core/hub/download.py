"""A whole model from the Hub: what is needed and missing, fetched by a few threads, shown to others when complete."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import DiskFull, DownloadFailed
from core.events import Stop
from core.hub.client import Client
from core.hub.fetch import Changed, Source, fetch
from core.hub.layout import Cache
from core.hub.listing import Listing, Reference, list_files, model_info
from core.hub.needed import INDEX, needed_files, shown_files
from core.hub.partial import disk_error
from core.hub.progress import Board, Pace, Report, Track, silent
from core.hub.removal import drop_partials
from core.hub.retry import Retries, Stopped, never

THREADS = 4
REPORT_S = 0.1
# Left free on the disk: other programs, and the system itself, fail when there is nothing.
RESERVE_BYTES = 256 << 20
LISTINGS = 3
NICENESS = 10


@dataclass(frozen=True)
class Downloaded:
    """A download's outcome. `bytes` of all needed files; of these `downloaded_bytes` came in this run and
    `resumed_bytes` were here before it. `complete` is False when it was stopped."""

    id: str
    revision: str
    path: Path
    bytes: int
    downloaded_bytes: int
    resumed_bytes: int
    verified: bool
    complete: bool = True


@dataclass(frozen=True)
class Manner:
    """How to download. `pace` is shared by all downloads of a program."""

    pace: Pace
    retries: Retries = field(default_factory=Retries)
    threads: int = THREADS
    reserve_bytes: int = RESERVE_BYTES


def download(
    client: Client,
    cache: Cache,
    reference: Reference,
    report: Report = silent,
    stop: Stop = never,
    manner: Manner | None = None,
) -> Downloaded:
    """Bring a model here, or the rest of it. `report` is called from this thread; `stop` pauses, keeping every byte.

    Raises NetworkError, AccessDenied, ModelNotFound, UnsupportedModel, DownloadFailed, DiskFull.
    """
    for _ in range(LISTINGS):
        try:
            return _Run(client, cache, reference, report, stop, manner or Manner(Pace())).result()
        except Changed:
            continue
    raise DownloadFailed(
        f"{reference.id} keeps changing on the server.", "Its files are being replaced.", "Try again in a while."
    )


class _Run:
    """One listing's worth of a download."""

    def __init__(
        self, client: Client, cache: Cache, reference: Reference, report: Report, stop: Stop, manner: Manner
    ) -> None:
        self._client, self._cache, self._reference = client, cache, reference
        self._report, self._asked, self._manner = report, stop, manner
        self._over = threading.Event()
        self._board = Board(reference.id, "", ())

    def result(self) -> Downloaded:
        self._report(self._board.progress())
        try:
            listing = self._list()
            if self._is_shut(listing):
                return self._outcome()
            self._fetch(Board(listing.id, listing.revision, self._tracks(listing)), self._report)
            self._show(listing)
        except Stopped:
            pass
        except OSError as error:
            raise disk_error(error, self._cache.root) from error
        self._report(self._board.progress())
        return self._outcome()

    def _list(self) -> Listing:
        info = model_info(self._client, self._reference, self._asked)
        listing = list_files(self._client, self._reference.id, info.revision, self._asked)
        self._board = Board(listing.id, listing.revision, ())
        return listing

    def _is_shut(self, listing: Listing) -> bool:
        """Whether the cache may not be written but holds the whole model. Raises OSError when it holds less."""
        try:
            self._cache.prepare(listing)
        except OSError:
            files = shown_files(self._cache, listing)
            if files is None:
                raise
            tracks = [Track(file, file.size, state="done") for file in files]
            self._board = Board(listing.id, listing.revision, tracks)
            return True
        return False

    def _tracks(self, listing: Listing) -> list[Track]:
        index = listing.file(INDEX)
        if index is None:
            return [Track(file) for file in needed_files(listing, None)]
        # The index says which weights count. It is fetched like any other file, so its bytes come once.
        track = Track(index)
        self._fetch(Board(listing.id, listing.revision, (track,)), silent)
        files = needed_files(listing, self._cache.read(listing.id, listing.revision, index))
        return [track if file == index else Track(file) for file in files]

    def _fetch(self, board: Board, report: Report) -> None:
        self._board = board
        tracks = [track for track in board.tracks if track.state != "done"]
        for track in tracks:
            track.resumed = self._cache.bytes_here(board.id, board.revision, track.file)
        self._check_room(board)
        source = Source(
            self._client, self._cache, board.id, board.revision, self._manner.retries, self._manner.pace, self._stop
        )
        with ThreadPoolExecutor(self._manner.threads, "download", initializer=_stand_back) as pool:
            futures = [pool.submit(fetch, source, track) for track in tracks]
            try:
                self._watch(board, futures, report)
            finally:
                self._end(source, futures)
        _raise_first(futures)

    def _watch(self, board: Board, futures: list[Future[None]], report: Report) -> None:
        running: set[Future[None]] = set(futures)
        while running and not self._stop():
            finished, running = wait(running, REPORT_S, FIRST_EXCEPTION)
            if any(future.exception() for future in finished):
                return
            self._check_low()
            report(board.progress())

    def _end(self, source: Source, futures: list[Future[None]]) -> None:
        """Let every thread come to its end, waking those that wait for the network."""
        running = {future for future in futures if not future.done()}
        if running:
            self._over.set()
        while running:
            for reply in list(source.live):
                reply.abort()
            running = wait(running, REPORT_S).not_done

    def _stop(self) -> bool:
        return self._over.is_set() or self._asked()

    def _check_room(self, board: Board) -> None:
        missing = sum(track.file.size - max(track.done, track.resumed) for track in board.tracks)
        short = missing + self._manner.reserve_bytes - self._free()
        if missing and short > 0:
            raise DiskFull(
                f"{board.id} does not fit on the disk with {self._cache.root}.",
                f"{missing / 1e9:.1f} GB are still to come, and {short / 1e9:.1f} GB are missing.",
                "Make room, or choose another folder for models.",
            )

    def _check_low(self) -> None:
        if self._free() < self._manner.reserve_bytes // 2:
            raise DiskFull(
                f"The disk with {self._cache.root} is nearly full.",
                "What was downloaded is kept.",
                "Make room, then resume the download.",
            )

    def _free(self) -> int:
        return shutil.disk_usage(self._cache.root).free

    def _show(self, listing: Listing) -> None:
        files = [track.file for track in self._board.tracks]
        self._cache.link(listing.id, listing.revision, files)
        self._cache.write_ref(listing.id, self._reference.revision, listing.revision)
        drop_partials(self._cache, listing.id)

    def _outcome(self) -> Downloaded:
        board = self._board
        return Downloaded(
            board.id, board.revision, self._cache.snapshot(board.id, board.revision), board.total, board.fetched,
            board.resumed, all(track.verified for track in board.tracks),
            complete=bool(board.tracks) and board.done == board.total,
        )  # fmt: skip


def _stand_back() -> None:
    """Let the window, and a model that computes, go before the checksums of this thread."""
    if sys.platform == "linux":
        # Linux takes the number of one thread here, where other systems would slow the whole program down.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise what a thread failed with: an error before a mere stop, which is what the others then saw."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
