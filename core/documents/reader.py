"""Reads a file in a process of its own: one that hangs, swells or crashes on it takes nothing else along."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil

from core.documents.document import Document, Limits, unreadable
from core.errors import DocumentUnreadable
from core.files import without_halves
from core.sentence import sentence, unpack

ARGUMENT = "--read-document"
"""With which a bundle's own program, having no Python beside it, reads a file as `core.documents.__main__` does."""
LOOK_S = 0.05
MORE_MEMORY = 256 << 20
"""What the interpreter and its libraries may take beside the document."""


def never() -> bool:
    """The `stop` of those who wait for the end."""
    return False


def read_document(path: Path, limits: Limits | None = None, stop: Callable[[], bool] = never) -> Document | None:
    """The text of a file, None when `stop` said so. Raises DocumentUnreadable."""
    limits = limits or Limits()
    name = without_halves(path.name)
    _check(path, name, limits)
    try:
        child = subprocess.Popen(
            _command(path, limits),
            cwd=_root(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise unreadable(name, sentence("The reader could not be started: {}.", error.strerror or error)) from error
    with child:
        try:
            told = _wait(child, name, limits, stop)
        finally:
            child.kill()
    return None if told is None else _document(told, name, child.returncode)


def _check(path: Path, name: str, limits: Limits) -> None:
    """Refuse what need not be opened."""
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


def _command(path: Path, limits: Limits) -> list[str]:
    frozen = bool(getattr(sys, "frozen", False))
    own = [sys.executable, ARGUMENT] if frozen else [sys.executable, "-m", "core.documents"]
    return [*own, str(path.absolute()), json.dumps(asdict(limits))]


def _root() -> Path | None:
    root = Path(__file__).resolve().parents[2]
    return root if root.is_dir() else None


def _wait(child: subprocess.Popen[bytes], name: str, limits: Limits, stop: Callable[[], bool]) -> bytes | None:
    """What the child says, None if it is no longer wanted."""
    deadline = time.monotonic() + limits.seconds
    while not stop():
        try:
            return child.communicate(timeout=LOOK_S)[0]
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > deadline:
            raise unreadable(name, sentence("Reading it took longer than {} seconds.", round(limits.seconds)))
        if _memory_of(child.pid) > limits.memory_bytes + MORE_MEMORY:
            raise unreadable(name, "Reading it takes more memory than is allowed.")
    return None


def _memory_of(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _document(told: bytes, name: str, code: int) -> Document:
    try:
        found = json.loads(told)
        if "what" in found:
            raise DocumentUnreadable(*(unpack(found[part]) for part in ("what", "why", "next_step")))
        return Document(name, tuple(map(str, found["pages"])), unpack(found["note"]))
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(name, sentence("The reader crashed on it (exit code {}): it may be damaged.", code)) from error
