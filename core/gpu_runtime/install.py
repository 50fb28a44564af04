"""Installs a runtime: downloads wheels with the Hub's downloader, unpacks them into a partial folder, renames it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.errors import DownloadFailed
from core.events import Stop, never
from core.gpu_runtime.store import DOWNLOADS, Runtime
from core.gpu_runtime.unpack import unpack
from core.hub.client import Client
from core.hub.downloader import Downloader, DownloadOptions
from core.hub.fetch_file import Changed
from core.hub.listing import Listing
from core.hub.partial_file import disk_error
from core.hub.progress import DownloadState, FileTrack, Pace
from core.sentence import sentence

if TYPE_CHECKING:
    from core.gpu_runtime.wheel_selection import Needed

Step = Literal["fetching", "unpacking"]


@dataclass(frozen=True)
class Advance:
    """Progress: `done` of `total` bytes of a step; the other fields are known only while fetching."""

    step: Step
    done: int
    total: int
    rate: float | None = None
    eta_s: float | None = None
    note: str = ""


def ignore(_: Advance) -> None:
    """Discard a progress report."""


def install(
    client: Client,
    runtime: Runtime,
    needed: Needed,
    report: Callable[[Advance], None] = ignore,
    stop: Stop = never,
    manner: DownloadOptions | None = None,
) -> None:
    """Install a runtime, or continue an installation; downloaded bytes are kept if it is stopped or fails.

    Raises Stopped, NetworkError, DownloadFailed, DiskFull.
    """
    try:
        _fetch(client, runtime, needed, report, stop, manner or DownloadOptions(Pace()))
        _unpack(runtime, needed, report, stop)
        with suppress(OSError):  # a virus scanner may hold files open on Windows; they are deleted with the runtime
            runtime.drop_downloads()
    except Changed as error:
        raise DownloadFailed(sentence("{} has changed on its server.", error), "", "Try again.") from error
    except OSError as error:
        raise disk_error(error, runtime.root) from error


def _fetch(
    client: Client,
    runtime: Runtime,
    needed: Needed,
    report: Callable[[Advance], None],
    stop: Stop,
    manner: DownloadOptions,
) -> None:
    cache, files = runtime.downloads, tuple(file for _, file in needed.wheels)
    cache.root.mkdir(parents=True, exist_ok=True)
    cache.prepare(Listing(DOWNLOADS, needed.version, files))
    board = DownloadState(DOWNLOADS, needed.version, [FileTrack(file) for file in files])

    def tell(_: object) -> None:
        now = board.progress()
        report(Advance("fetching", now.done, now.total, now.rate, now.eta_s, now.note))

    Downloader(client, cache, needed.address, stop, manner).bring(board, tell)


def _unpack(runtime: Runtime, needed: Needed, report: Callable[[Advance], None], stop: Stop) -> None:
    wheels = [runtime.downloads.blob(DOWNLOADS, file.etag) for _, file in needed.wheels]
    partial = runtime.partial(needed.version)
    size = unpack(wheels, partial, stop, lambda done, total: report(Advance("unpacking", done, total)))
    runtime.stamp(needed.version, size)
