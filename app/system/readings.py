"""The KV caches of conversations that the engine keeps on disk (see `core.paths`): their size and removal."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from core.paths import kept_reading, kept_readings


def nbytes() -> int:
    """Return the total size of all files."""
    total = 0
    for path in kept_readings().glob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def remove(conversation: str) -> None:
    """Delete the files of one conversation."""
    with suppress(OSError):
        kept_reading(conversation).unlink(missing_ok=True)


def keep_only(conversations: Iterable[str]) -> None:
    """Delete the files of all other conversations."""
    known = {kept_reading(each) for each in conversations}
    for path in kept_readings().glob("*"):
        if path not in known:
            with suppress(OSError):
                path.unlink(missing_ok=True)
