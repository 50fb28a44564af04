"""A lock on a file, so that two programs do not write the same model file; the system frees it when one is killed.

The lock files are those of huggingface_hub, in the same places and locked in the same way: the two respect each other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.events import Stop
from core.hub.retry import nap

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


WAIT_S = 0.2


@contextmanager
def held(path: Path, stop: Stop, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at `path`, waiting while another program has it. Raises Stopped, OSError (folder not writable)."""
    while (handle := try_lock(path)) is None:
        on_wait()
        nap(WAIT_S, stop)
    try:
        yield
    finally:
        os.close(handle)


def try_lock(path: Path) -> int | None:
    """Take the lock; an open file descriptor that holds it until closed, None when another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        _lock(handle)
        # Another program may have removed the file between opening and locking: its lock would guard nothing.
        if os.fstat(handle).st_nlink:
            return handle
    except BlockingIOError:
        pass
    except PermissionError:
        # How Windows says that another program holds it.
        if sys.platform != "win32":
            raise
    os.close(handle)
    return None
