"""The process in which one file is read: `python -m core.documents FILE LIMITS`, one line of JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from core.documents import formats
from core.documents.document import Limits, unreadable
from core.errors import DocumentUnreadable
from core.files import without_halves
from core.sentence import pack

FORBIDDEN = (
    "socket.", "urllib.", "subprocess.", "shutil.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.startfile", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
)  # fmt: skip
"""What no reader does: events of Python's audit by the beginnings of their names."""


def main(arguments: list[str]) -> int:
    """Read the file and say what was found, or why not."""
    path, limits = Path(arguments[0]), Limits(**json.loads(arguments[1]))
    _limit(limits)
    sys.addaudithook(_forbid)
    try:
        document = formats.read(path, limits)
        told = {"pages": [without_halves(page) for page in document.pages], "note": pack(document.note)}
    except DocumentUnreadable as error:
        told = _refusal(error)
    except MemoryError:
        told = _refusal(unreadable(path.name, "Reading it takes more memory than is allowed."))
    except OSError as error:
        told = _refusal(unreadable(path.name, f"{error.strerror or error}."))
    sys.stdout.buffer.write(json.dumps(told).encode())
    sys.stdout.flush()
    # A library that a hostile file has confused may crash when it is unloaded, after all has been said.
    os._exit(0)


def _refusal(error: DocumentUnreadable) -> dict[str, object]:
    return {part: pack(getattr(error, part)) for part in ("what", "why", "next_step")}


def _limit(limits: Limits) -> None:
    """Let the system hold this process to its limits, where it can."""
    if sys.platform == "win32":
        return
    import resource

    # On macOS not every limit can be set.
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
    """Whether a file is opened for more than reading; `os.open` gives no mode, and the flags alone tell."""
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    main(sys.argv[1:])
