"""Download progress: frozen records for observers, computed from counters that the fetching threads update."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from core.events import Stop
from core.hub.listing import RemoteFile
from core.hub.retry import nap

FileState = Literal["waiting", "checking", "fetching", "retrying", "done"]
Phase = Literal["listing", "checking", "fetching", "done"]
RATE_WINDOW_S = 5.0


@dataclass(frozen=True)
class FileProgress:
    """One file: `done` of `size` bytes."""

    path: str
    done: int
    size: int
    state: FileState


@dataclass(frozen=True)
class Progress:
    """A download. `done` counts all bytes here, `fetched` those of this run; `rate` in bytes/s and `eta_s` are None if
    not known; `note` is a sentence about what is being waited for, or ""."""

    id: str
    revision: str = ""
    phase: Phase = "listing"
    done: int = 0
    total: int = 0
    fetched: int = 0
    rate: float | None = None
    eta_s: float | None = None
    files: tuple[FileProgress, ...] = ()
    note: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress."""


@dataclass
class FileTrack:
    """One file's counters. Written by the fetching thread, read by the reporting one."""

    file: RemoteFile
    done: int = 0
    fetched: int = 0
    resumed: int = 0
    state: FileState = "waiting"
    note: str = ""
    verified: bool = False


class DownloadState:
    """All files of one run, and its rate over the last seconds."""

    def __init__(self, id: str, revision: str, tracks: Sequence[FileTrack]) -> None:
        self.id = id
        self.revision = revision
        self.tracks = tuple(tracks)
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(track.file.size for track in self.tracks)

    @property
    def done(self) -> int:
        """Bytes present, whenever they were fetched."""
        return sum(track.done for track in self.tracks)

    @property
    def fetched(self) -> int:
        """Bytes fetched over the network in this run."""
        return sum(track.fetched for track in self.tracks)

    @property
    def resumed(self) -> int:
        """Bytes that were here before this run."""
        return sum(track.resumed for track in self.tracks)

    def progress(self) -> Progress:
        """Return the current progress, with the rate in bytes per second and the seconds left."""
        rate, done, total = self._rate(), self.done, self.total
        return Progress(
            self.id, self.revision, self._phase(), done, total, self.fetched, rate,
            (total - done) / rate if rate else None,
            tuple(FileProgress(track.file.path, track.done, track.file.size, track.state) for track in self.tracks),
            next((track.note for track in self.tracks if track.note), ""),
        )  # fmt: skip

    def _phase(self) -> Phase:
        states = {track.state for track in self.tracks}
        if not states:
            return "listing"
        if states <= {"done"}:
            return "done"
        return "checking" if "checking" in states and not states & {"fetching", "retrying"} else "fetching"

    def _rate(self) -> float | None:
        now, fetched = time.monotonic(), self.fetched
        self._samples.append((now, fetched))
        while len(self._samples) > 2 and now - self._samples[1][0] > RATE_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        return (fetched - before) / (now - then) if fetched > before and now > then else None


def duration(seconds: float) -> str:
    """Format a duration with the precision of an estimate: '45 s', '12 min', '2 h 5 min'."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


class Pace:
    """A limit on bytes per second, shared by all threads of all downloads; None = no limit."""

    def __init__(self, bytes_s: float | None = None) -> None:
        self.bytes_s = bytes_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, count: int, stop: Stop) -> None:
        """Wait until `count` more bytes are within the limit. Raises Stopped."""
        if not self.bytes_s:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.bytes_s
            wait = self._free_at - now
        nap(wait, stop)
