"""Writes files in one step: a reader sees the old or the new one, never half of one, also when the disk is full."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

WAITS_S = (0.01, 0.03, 0.1, 0.3, 1.0)
"""How long a scanner may hold what it was told to look at."""


def write_whole(path: Path, text: str) -> None:
    """Put a text at `path`, with line ends as they are. Raises OSError; what was there before is then as it was."""
    path = path.resolve()  # a link stays one, and what it points to is written
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        move_over(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def move_over(fresh: Path, path: Path) -> None:
    """Give what was written as `fresh` its name, in place of what has it. Raises OSError.

    Windows refuses while any program has either of them open, as scanners, indexers and OneDrive do for a moment with
    all that was just written: it is tried again.
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
    """Write `value` as JSON, whole or not at all. On a full disk or in a folder that may not be written nothing is."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(value))


def without_halves(text: str) -> str:
    """The text as files can hold it: halves of surrogate pairs, which mean nothing alone, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
