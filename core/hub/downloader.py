"""Fetches files into the cache in a few threads: checks disk space, reports progress, and stops promptly."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from core.errors import DiskFull
from core.events import Stop
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.fetch_file import Address, DownloadSource, fetch
from core.hub.progress import DownloadState, Pace, Report
from core.hub.retry import Retries, Stopped
from core.sentence import sentence

THREADS = 4
REPORT_S = 0.1
# Disk space to leave free: other programs, and the system, fail without any.
RESERVE_BYTES = 256 << 20
NICENESS = 10


@dataclass(frozen=True)
class DownloadOptions:
    """Download options. `pace` is shared by all downloads of a program."""

    pace: Pace
    retries: Retries = field(default_factory=Retries)
    threads: int = THREADS
    reserve_bytes: int = RESERVE_BYTES


class Downloader:
    """Fetches the files of a download into one cache. `address` returns a file's address on the server."""

    def __init__(self, client: Client, cache: Cache, address: Address, stop: Stop, manner: DownloadOptions) -> None:
        self._client, self._cache, self._address = client, cache, address
        self._asked, self._manner = stop, manner
        self._over = threading.Event()

    def bring(self, board: DownloadState, report: Report) -> None:
        """Fetch the missing files. Raises Stopped, Changed, DiskFull, DownloadFailed, NetworkError, OSError."""
        tracks = [track for track in board.tracks if track.state != "done"]
        for track in tracks:
            track.resumed = self._cache.bytes_here(board.id, board.revision, track.file)
        self._check_room(board)
        source = DownloadSource(
            self._client, self._cache, board.id, board.revision, self._address,
            self._manner.retries, self._manner.pace, self._stop,
        )  # fmt: skip
        with ThreadPoolExecutor(self._manner.threads, "download", initializer=_lower_priority) as pool:
            futures = [pool.submit(fetch, source, track) for track in tracks]
            try:
                self._watch(board, futures, report)
            finally:
                self._end(source, futures)
        _raise_first(futures)

    def _watch(self, board: DownloadState, futures: list[Future[None]], report: Report) -> None:
        running: set[Future[None]] = set(futures)
        while running and not self._stop():
            finished, running = wait(running, REPORT_S, FIRST_EXCEPTION)
            if any(future.exception() for future in finished):
                return
            self._check_low()
            report(board.progress())

    def _end(self, source: DownloadSource, futures: list[Future[None]]) -> None:
        """Wait for all threads to end, unblocking those that wait for the network."""
        running = {future for future in futures if not future.done()}
        if running:
            self._over.set()
        while running:
            for reply in list(source.live):
                reply.abort()
            running = wait(running, REPORT_S).not_done

    def _stop(self) -> bool:
        return self._over.is_set() or self._asked()

    def _check_room(self, board: DownloadState) -> None:
        missing = sum(track.file.size - max(track.done, track.resumed) for track in board.tracks)
        short = missing + self._manner.reserve_bytes - self._free()
        if missing and short > 0:
            raise DiskFull(
                sentence("{} does not fit on the disk with {}.", board.id, self._cache.root),
                sentence(
                    "{} GB are still to come, and {} GB are missing.",
                    f"{missing / 1e9:.1f}",
                    f"{short / 1e9:.1f}",
                ),
                "Make room, or choose another folder for models.",
            )

    def _check_low(self) -> None:
        if self._free() < self._manner.reserve_bytes // 2:
            raise DiskFull(
                sentence("The disk with {} is nearly full.", self._cache.root),
                "What was downloaded is kept.",
                "Make room, then resume the download.",
            )

    def _free(self) -> int:
        return shutil.disk_usage(self._cache.root).free


def _lower_priority() -> None:
    """Give the window and inference priority over download threads."""
    if sys.platform == "linux":
        # Linux accepts a thread's id here; elsewhere this would slow down the whole process.
        own = threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, own) < NICENESS:  # raising it is refused
            os.setpriority(os.PRIO_PROCESS, own, NICENESS)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise a thread's exception, a real error before Stopped, which the other threads raise in consequence."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
