"""The files in which the engine keeps what was read of conversations (see `core.paths`): their size, and their end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from core.paths import kept_reading, kept_readings


def nbytes() -> int:
    """Bytes of all of them."""
    total = 0
    for path in kept_readings().glob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def remove(conversation: str) -> None:
    """Deletes what was read of one conversation."""
    with suppress(OSError):
        kept_reading(conversation).unlink(missing_ok=True)


def keep_only(conversations: Iterable[str]) -> None:
    """Deletes what was read of all others."""
    known = {kept_reading(each) for each in conversations}
    for path in kept_readings().glob("*"):
        if path not in known:
            with suppress(OSError):
                path.unlink(missing_ok=True)
