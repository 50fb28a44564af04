"""An unfinished file with its running checksum, and the meaning of disk errors.

The file only grows, so its length is the whole state: it survives a kill at any moment.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import DiskFull, DownloadFailed, HeteGenError
from core.events import Stop
from core.files import move_over
from core.hub.listing import RemoteFile
from core.hub.retry import Stopped
from core.sentence import sentence

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK_BYTES = 1 << 20
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def checksum(file: RemoteFile) -> _Hash:
    """Return a new hash of the kind that identifies the file: SHA-256, or git's SHA-1 with its header for small
    files."""
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def hash_file(path: Path, file: RemoteFile, stop: Stop, advance: Callable[[int], None]) -> str:
    """Return the checksum of a file on disk; `advance` is called with the bytes read. Raises Stopped, OSError."""
    running = checksum(file)
    for block in _blocks(path, stop):
        running.update(block)
        advance(len(block))
    return running.hexdigest()


def _blocks(path: Path, stop: Stop) -> Iterator[memoryview]:
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            if stop():
                raise Stopped
            yield view[:count]


def disk_error(error: OSError, root: Path) -> HeteGenError:
    """Return the error for a disk failure while a model is written under `root`."""
    if error.errno in FULL:
        return DiskFull(
            sentence("The disk with {} is full.", root),
            "What was downloaded is kept.",
            "Make room, then resume the download.",
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        why = sentence("The folder may only be read.")
    else:
        why = f"{error.strerror or error}."
    return DownloadFailed(sentence("Models cannot be written to {}.", root), why, "Choose another folder for models.")


class Partial:
    """An unfinished file: its bytes so far and their running checksum."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self._path = path
        self._file = file
        self._hash = checksum(file)
        self._opened = path.open("ab", buffering=0)
        self.done = 0

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def rebuild(self, stop: Stop, advance: Callable[[int], None]) -> None:
        """Hash what an earlier run left, to continue it. Raises Stopped, OSError."""
        if self._path.stat().st_size > self._file.size:
            self.restart()
        for block in _blocks(self._path, stop):
            self._hash.update(block)
            self.done += len(block)
            advance(len(block))

    def restart(self) -> None:
        """Discard all bytes."""
        self._opened.truncate(0)
        self._hash = checksum(self._file)
        self.done = 0

    def append(self, block: bytes) -> None:
        """Write a block and count what reached the file. Raises OSError; bytes written before it are kept."""
        view = memoryview(block)
        while view:
            written = self._opened.write(view) or 0
            self._hash.update(view[:written])
            self.done += written
            view = view[written:]

    def is_right(self) -> bool:
        """Return whether the checksum of what was written is the file's."""
        return self._hash.hexdigest() == self._file.etag

    def finish(self, blob: Path) -> None:
        """Rename the complete file. Its bytes are flushed first, because the name asserts that they are right."""
        os.fsync(self._opened.fileno())
        self._opened.close()
        move_over(self._path, blob)
