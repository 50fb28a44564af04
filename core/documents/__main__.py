"""The process that reads one file: `python -m core.documents FILE LIMITS`, with the file's password on stdin.

It writes lines of JSON to stdout: progress, and as the last line the result.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from core.documents import formats
from core.documents.document import Limits, unreadable
from core.errors import DocumentLocked, DocumentUnreadable
from core.files import without_halves
from core.sentence import pack

SAY_S = 0.1
PASSWORD_BYTES = 4096
FORBIDDEN = (
    "socket.", "urllib.", "subprocess.", "shutil.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.startfile", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
)  # fmt: skip
"""Prefixes of Python audit events that no reader may trigger."""


def main(arguments: list[str]) -> int:
    """Read the file and report what was found, or why it could not be read."""
    path, limits = Path(arguments[0]), Limits(**json.loads(arguments[1]))
    # A windowed program has no stdin if it was started by hand.
    password = sys.stdin.buffer.read(PASSWORD_BYTES).decode() if sys.stdin is not None else ""
    _limit(limits)
    sys.addaudithook(_forbid)
    try:
        document = formats.read(path, limits, password, _Progress())
        told: dict[str, object] = {
            "pages": [without_halves(page) for page in document.pages],
            "note": pack(document.note),
        }
    except DocumentUnreadable as error:
        told = _refusal(error)
    except MemoryError:
        told = _refusal(unreadable(path.name, "Reading it takes more memory than is allowed."))
    except OSError as error:
        told = _refusal(unreadable(path.name, f"{error.strerror or error}."))
    _say(told)
    # A library corrupted by a hostile file may crash when it is unloaded, after the result has been written.
    os._exit(0)


def _say(told: dict[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
    sys.stdout.flush()


class _Progress:
    """Reports how many pages were read, at most every 100 ms."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._last >= SAY_S:
            self._last = now
            _say({"done": done, "of": of})


def _refusal(error: DocumentUnreadable) -> dict[str, object]:
    parts = {part: pack(getattr(error, part)) for part in ("what", "why", "next_step")}
    return {**parts, "locked": isinstance(error, DocumentLocked)}


def _limit(limits: Limits) -> None:
    """Apply the system's resource limits to this process, where it has them."""
    if sys.platform == "win32":
        return
    import resource

    # On macOS, not every limit can be set.
    for kind, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, 2 * limits.memory_bytes),
        (resource.RLIMIT_CPU, round(limits.seconds) + 1),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    if (event == "open" and _writes(*arguments[1:3])) or event.startswith(FORBIDDEN):
        raise PermissionError(f"{event} is not for readers of documents")


def _writes(mode: object, flags: object) -> bool:
    """Return whether a file is opened for writing; `os.open` has no mode, so its flags decide."""
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    main(sys.argv[1:])
