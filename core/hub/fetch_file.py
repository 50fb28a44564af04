"""Fetches one file into the cache: resumed where it stopped, hashed while written, and published when verified."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import DownloadFailed, HeteGenError, NetworkError
from core.events import Stop
from core.hub.cache_layout import Cache
from core.hub.client import Client, HttpResponse
from core.hub.file_lock import held
from core.hub.listing import DIGEST, RemoteFile
from core.hub.partial_file import BLOCK_BYTES, Partial, disk_error, hash_file
from core.hub.progress import FileTrack, Pace
from core.hub.retry import Retries, Stopped, Transient, nap
from core.sentence import sentence

CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
CHECKSUM_TRIES = 2
Address = Callable[[RemoteFile], str]


class Changed(Exception):
    """The server's file is no longer the listed one."""


@dataclass(frozen=True)
class DownloadSource:
    """Source and destination of a download's files, and the retry policy. `live`: responses being read now."""

    client: Client
    cache: Cache
    id: str
    commit: str
    address: Address
    retries: Retries
    pace: Pace
    stop: Stop
    live: set[HttpResponse] = field(default_factory=set)


def fetch(source: DownloadSource, track: FileTrack) -> None:
    """Fetch one file into the cache, complete and verified. Raises Stopped, Changed, DiskFull, DownloadFailed, ..."""
    if source.stop():
        raise Stopped
    lock = source.cache.lock(source.id, track.file.etag)
    with _disk_errors(source.cache.root), held(lock, source.stop, lambda: _say_busy(track)):
        track.note = ""
        if not _is_here(source, track):
            _bring(source, track)
        track.verified = True
        track.state = "done"


def _is_here(source: DownloadSource, track: FileTrack) -> bool:
    file, cache = track.file, source.cache
    place = cache.content(source.id, source.commit, file)
    if place is None:
        return False
    track.done = file.size
    if cache.is_verified(source.id, file.etag, place):
        return True
    track.state, track.done = "checking", 0
    if hash_file(place, file, source.stop, lambda count: _advance(track, count)) == file.etag:
        cache.mark_verified(source.id, file.etag, place)
        return True
    place.unlink()
    track.done = track.resumed = 0
    return False


def _bring(source: DownloadSource, track: FileTrack) -> None:
    cache, file = source.cache, track.file
    with Partial(cache.partial(source.id, file.etag), file) as partial:
        track.state = "checking"
        partial.rebuild(source.stop, lambda count: _advance(track, count))
        track.done = partial.done
        for tried in range(1, CHECKSUM_TRIES + 1):
            _complete(source, track, partial)
            if partial.is_right():
                break
            partial.restart()
            if tried == CHECKSUM_TRIES:
                raise DownloadFailed(
                    sentence("{} of {} arrived damaged.", file.path, source.id),
                    "Its checksum was wrong twice.",
                    "Try again later, or on another network.",
                )
        blob = cache.blob(source.id, file.etag)
        partial.finish(blob)
    cache.mark_verified(source.id, file.etag, blob)


def _complete(source: DownloadSource, track: FileTrack, partial: Partial) -> None:
    """Receive until the file is complete; only consecutive attempts without progress count as failures."""
    failures, furthest = 0, partial.done
    while partial.done < track.file.size:
        track.state, track.done = "fetching", partial.done
        try:
            _receive(source, track, partial)
            continue
        except Transient as failure:
            if source.stop():
                raise Stopped from failure
            failures = 1 if partial.done > furthest else failures + 1
            furthest = max(furthest, partial.done)
            if source.retries.gives_up(failures, failure.after_s):
                raise failure.error from failure
            error, wait = failure.error, source.retries.wait_s(failures, failure.after_s)
        track.state, track.note = "retrying", sentence("{} Trying again in {} s.", error.what, f"{wait:.0f}")
        nap(wait, source.stop)
        track.note = ""


def _receive(source: DownloadSource, track: FileTrack, partial: Partial) -> None:
    file = track.file
    wanted = {"Range": f"bytes={partial.done}-"} if partial.done else {}
    with source.client.open(source.address(file), source.id, wanted) as reply:
        source.live.add(reply)
        try:
            _check_etag(reply, file)
            if partial.done and reply.status == 200:
                # The server ignored the range: its response starts at the beginning.
                partial.restart()
            _check_length(reply, file, partial.done)
            _read_into(source, track, partial, reply)
        finally:
            source.live.discard(reply)


def _read_into(source: DownloadSource, track: FileTrack, partial: Partial, reply: HttpResponse) -> None:
    size = track.file.size
    while partial.done < size:
        if source.stop():
            raise Stopped
        block = reply.read1(min(BLOCK_BYTES, size - partial.done))
        if not block:
            raise Transient(_cut(source, track.file))
        try:
            partial.append(block)
        finally:
            track.fetched += partial.done - track.done
            track.done = partial.done
        source.pace.take(len(block), source.stop)


def _check_etag(reply: HttpResponse, file: RemoteFile) -> None:
    said = reply.first.get("X-Linked-Etag") or reply.first.get("ETag") or ""
    etag = said.removeprefix("W/").strip('"')
    # A mirror may use another kind of digest, from which no change can be concluded.
    if DIGEST.fullmatch(etag) and len(etag) == len(file.etag) and etag != file.etag:
        raise Changed(file.path)


def _check_length(reply: HttpResponse, file: RemoteFile, start: int) -> None:
    length = reply.headers.get("Content-Length")
    said = re.fullmatch(CONTENT_RANGE, reply.headers.get("Content-Range", "")) if reply.status == 206 else None
    wrong_place = reply.status == 206 and (said is None or int(said[1]) != start)
    wrong_total = said is not None and said[2] not in ("*", str(file.size))
    # Compared as text: the header may not be a number.
    if wrong_place or wrong_total or (length is not None and length.strip() != str(file.size - start)):
        raise Transient(
            DownloadFailed(
                sentence("{} has the wrong length on the server.", file.path),
                sentence("{} bytes were expected, {} are offered.", f"{file.size - start:,}", length or "others"),
                "Try again later; a sign-in page of the network may be in between.",
            )
        )


def _cut(source: DownloadSource, file: RemoteFile) -> HeteGenError:
    return NetworkError(
        sentence("The connection to {} broke.", source.client.host),
        sentence("{} was cut off.", file.path),
        "Check the connection.",
    )


def _advance(track: FileTrack, count: int) -> None:
    track.done += count


def _say_busy(track: FileTrack) -> None:
    track.note = sentence("Another program is downloading the same file.")


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, root) from error
