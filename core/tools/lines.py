"""A server's log: its latest lines, without secrets, of limited length, and stored on disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from core.tools.log_file import LogFile

KEPT, WIDEST = 300, 500
HIDDEN = "•••"


class Lines:
    """Takes lines in the tools' thread, and calls `changed` there. Lines of earlier starts come first."""

    def __init__(self, changed: Callable[[], None], file: LogFile | None = None) -> None:
        self._changed, self._file = changed, file
        self._secrets: tuple[str, ...] = ()
        self._kept: deque[str] = deque(file.latest(KEPT) if file else (), maxlen=KEPT)
        self._unwritten: deque[str] = deque(maxlen=KEPT)

    def add(self, text: str) -> None:
        """Add a text of one or more lines."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        for line in text.splitlines():
            clean = "".join(sign if sign.isprintable() else " " for sign in line[:WIDEST]).rstrip()
            if clean:
                whole = f"{at}  {clean}{'…' if len(line) > WIDEST else ''}"
                self._kept.append(whole)
                self._unwritten.append(whole)
        self._changed()

    def hide(self, secrets: Sequence[str]) -> None:
        """Mask these values in all later lines."""
        self._secrets = tuple(dict.fromkeys((*self._secrets, *secrets)))

    def write(self) -> None:
        """Write new lines to disk; called periodically, because there may be thousands a second."""
        if self._file is not None and self._unwritten:
            self._file.write(self._unwritten)
            self._unwritten.clear()

    def forget(self) -> None:
        """Delete the log of a removed server."""
        self._unwritten.clear()
        if self._file is not None:
            self._file.remove()

    @property
    def shown(self) -> tuple[str, ...]:
        """The lines, the oldest first."""
        return tuple(self._kept)
