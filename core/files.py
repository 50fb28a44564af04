"""Writes files in one step: a reader sees the old or the new one, never half of one, also when the disk is full."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Put a text at `path`, with line ends as they are. Raises OSError; what was there before is then as it was."""
    path = path.resolve()  # a link stays one, and what it points to is written
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def keep(file: Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all. On a full disk or in a folder that may not be written nothing is."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(value))


def without_halves(text: str) -> str:
    """The text as files can hold it: halves of surrogate pairs, which mean nothing alone, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
