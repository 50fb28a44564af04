"""File locks, so that two programs do not write the same model file; the system releases a killed holder's locks.

The lock files are huggingface_hub's, with the same paths and the same library, so both programs respect each other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.events import Stop
from core.hub.retry import nap

if TYPE_CHECKING:
    from filelock import BaseFileLock

WAIT_S = 0.2


@contextmanager
def held(path: Path, stop: Stop, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at `path`, waiting while another program has it. Raises Stopped, OSError (folder not writable)."""
    while (lock := try_lock(path)) is None:
        on_wait()
        nap(WAIT_S, stop)
    try:
        yield
    finally:
        lock.release()


def try_lock(path: Path) -> BaseFileLock | None:
    """Take the lock, held until `release` or the end of the process; None if another program has it. Raises OSError.

    On file systems without locks, the library falls back to a marker file.
    """
    # Imported late: it takes 30 ms, and starting the window locks nothing.
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # Members of a group may share a cache, and the lock may be released by another thread than its taker.
    lock = FileLock(path, timeout=0, mode=0o664, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
