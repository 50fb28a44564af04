"""Reads a file in a child process, so that a file which hangs, exhausts memory or crashes does no further harm."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import psutil

from core.documents.document import Document, Limits, unreadable
from core.errors import DocumentLocked, DocumentUnreadable
from core.events import Stop, never
from core.files import without_halves
from core.own_process import command, source_folder, without_window
from core.sentence import sentence, unpack

ARGUMENT = "--read-document"
"""The argument by which a bundle's program, which has no Python beside it, runs `core.documents.__main__`."""
PROGRESS = b'{"done": '
LOOK_S = 0.05
MORE_MEMORY = 256 << 20
"""Memory that the interpreter and its libraries may take in addition to the document."""


def unheard(done: int, of: int) -> None:
    """Ignore progress: the default of callers that only want the text."""


def read_document(
    path: Path,
    limits: Limits | None = None,
    stop: Stop = never,
    progress: Callable[[int, int], None] = unheard,
    password: str = "",
) -> Document | None:
    """Return the text of a file, None if `stop` returned True; `progress(pages read, pages)`.

    Raises DocumentUnreadable, and DocumentLocked if a password, or a different one, would help.
    """
    limits = limits or Limits()
    name = without_halves(path.name)
    _check(path, name, limits)
    try:
        child = subprocess.Popen(
            command("core.documents", ARGUMENT, str(path.absolute()), json.dumps(asdict(limits))),
            cwd=source_folder(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=without_window(),
        )
    except OSError as error:
        raise unreadable(name, sentence("The reader could not be started: {}.", error.strerror or error)) from error
    with child:
        listener = _Listener(child, password)
        try:
            told = listener.wait(name, limits, stop, progress)
        finally:
            listener.end()
    return None if told is None else _document(told, name, child.returncode)


def _check(path: Path, name: str, limits: Limits) -> None:
    """Reject files that need not be opened."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(name, sentence("{}.", getattr(error, "strerror", None) or error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise unreadable(name, "It is a folder or a device, not a file.")
    if found.st_size > limits.file_bytes:
        mib = 1 << 20
        why = sentence("It has {} MiB, and at most {} are read.", found.st_size // mib, limits.file_bytes // mib)
        raise unreadable(name, why, "Attach a part of it.")


class _Listener:
    """Reads the child's output in a thread, because reading from a pipe has no timeout."""

    def __init__(self, child: subprocess.Popen[bytes], password: str) -> None:
        self._child = child
        self._lines: Queue[bytes] = Queue()
        self._thread = Thread(target=self._hear, args=(password.encode(),), name="document", daemon=True)
        self._thread.start()

    def wait(self, name: str, limits: Limits, stop: Stop, progress: Callable[[int, int], None]) -> bytes | None:
        """Return the child's last line, None if it was stopped. Raises DocumentUnreadable."""
        deadline = time.monotonic() + limits.seconds
        while not stop():
            if (line := self._next()) is not None:
                if (far := _progress_in(line)) is None:
                    return line
                progress(*far)
            if time.monotonic() > deadline:
                raise unreadable(name, sentence("Reading it took longer than {} seconds.", round(limits.seconds)))
            if _memory_of(self._child.pid) > limits.memory_bytes + MORE_MEMORY:
                raise unreadable(name, "Reading it takes more memory than is allowed.")
        return None

    def end(self) -> None:
        """Kill the child and join the thread."""
        self._child.kill()
        self._thread.join()

    def _hear(self, password: bytes) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        # The child may have died before it read the password.
        with suppress(OSError):
            self._child.stdin.write(password)
            self._child.stdin.close()
        for line in self._child.stdout:
            self._lines.put(line)
        self._child.wait()
        self._lines.put(b"")

    def _next(self) -> bytes | None:
        try:
            return self._lines.get(timeout=LOOK_S)
        except Empty:
            return None


def _progress_in(line: bytes) -> tuple[int, int] | None:
    if not line.startswith(PROGRESS):
        return None
    told = json.loads(line)
    return told["done"], told["of"]


def _memory_of(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _document(told: bytes, name: str, code: int) -> Document:
    try:
        found = json.loads(told)
        if "what" in found:
            kind = DocumentLocked if found["locked"] else DocumentUnreadable
            raise kind(*(unpack(found[part]) for part in ("what", "why", "next_step")))
        return Document(name, tuple(map(str, found["pages"])), unpack(found["note"]))
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(name, sentence("The reader crashed on it (exit code {}): it may be damaged.", code)) from error
