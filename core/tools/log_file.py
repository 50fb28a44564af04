"""A server's log on disk, in two files of at most MOST_BYTES each. Secrets are already masked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

MOST_BYTES = 256 << 10
NAME_LENGTH = 40


class LogFile:
    """The log of the server `name` in `folder`. Without disk space, nothing is written."""

    def __init__(self, folder: Path, name: str) -> None:
        readable = re.sub(r"[^\w-]+", "_", name, flags=re.ASCII)[:NAME_LENGTH]
        # Names may differ only in characters that a file name cannot hold.
        self.path = folder / f"{readable}-{sha256(name.encode()).hexdigest()[:8]}.log"
        self._before = self.path.with_suffix(".old.log")

    def latest(self, count: int) -> list[str]:
        """Return the last `count` lines, the oldest first."""
        lines = _lines(self.path)
        missing = count - len(lines)
        return [*_lines(self._before)[-missing:], *lines] if missing > 0 else lines[-count:]

    def write(self, lines: Iterable[str]) -> None:
        """Append lines; rotate a full file."""
        text = "".join(f"{line}\n" for line in lines)
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size + len(text.encode()) > MOST_BYTES:
                self.path.replace(self._before)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)

    def remove(self) -> None:
        """Delete the server's log."""
        for path in (self.path, self._before):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
