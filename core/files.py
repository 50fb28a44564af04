"""Atomic file writes: a reader sees the old or the new content, never a part, even if the disk is full."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

WAITS_S = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Retry intervals, covering how long a virus scanner may hold a new file open."""


def write_whole(path: Path, text: str) -> None:
    """Write a text to `path` atomically, with line ends unchanged. Raises OSError; the old content is then kept."""
    path = path.resolve()  # write to the target of a link, and keep the link
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with fresh.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        move_over(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def move_over(fresh: Path, path: Path) -> None:
    """Rename `fresh` to `path`, replacing it. Raises OSError.

    Windows refuses while any program has either of them open, as scanners, indexers and OneDrive briefly do with new
    files; the rename is therefore retried.
    """
    for wait_s in WAITS_S:
        try:
            fresh.replace(path)
        except PermissionError:
            time.sleep(wait_s)
        else:
            return
    fresh.replace(path)


def keep(file: Path, value: object) -> None:
    """Write `value` as JSON atomically. Does nothing on a full disk or in a read-only folder."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(value))


def without_halves(text: str) -> str:
    """Replace unpaired surrogates, which cannot be encoded, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
