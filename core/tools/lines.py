"""The log of one server: its latest lines, without keys, short enough to be read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

KEPT, WIDEST = 300, 500
HIDDEN = "•••"


class Lines:
    """Takes lines in the tools' thread, and calls `changed` there."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._secrets: tuple[str, ...] = ()
        self._kept: deque[str] = deque(maxlen=KEPT)

    def add(self, text: str) -> None:
        """Keep a text, a line or several."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        at = time.strftime("%H:%M:%S")
        for line in text.splitlines():
            clean = "".join(sign if sign.isprintable() else " " for sign in line[:WIDEST]).rstrip()
            if clean:
                self._kept.append(f"{at}  {clean}{'…' if len(line) > WIDEST else ''}")
        self._changed()

    def hide(self, secrets: Sequence[str]) -> None:
        """Keep these values out from now on, too."""
        self._secrets = tuple(dict.fromkeys((*self._secrets, *secrets)))

    @property
    def shown(self) -> tuple[str, ...]:
        """The lines, the oldest first."""
        return tuple(self._kept)
