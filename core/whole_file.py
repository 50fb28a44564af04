"""Writes a file in one step: a reader sees the old or the new one, never half of one, also when the disk is full."""

from __future__ import annotations

import os
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
