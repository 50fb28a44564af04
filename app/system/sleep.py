"""Notices that the computer was asleep: by the clock on the wall, which went on while this program's timer stood still.

No system tells all programs alike. A clock that is put forward looks the same, which does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Signal, Slot

LOOK_MS = 5000
LONGEST_PAUSE_S = 60.0
"""A busy computer may hold a timer up; so long it does not."""


class SleepWatch(QObject):
    """`woke` soon after the computer does."""

    woke = Signal()

    def __init__(self, clock: Callable[[], float] = time.time, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._clock = clock
        self._looked_at = clock()
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self.look)

    def start(self) -> None:
        """Watch from now on."""
        self._looked_at = self._clock()
        self._timer.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.stop()

    @Slot()
    def look(self) -> None:
        """Compare the clock with the last look."""
        now = self._clock()
        slept, self._looked_at = now - self._looked_at > LONGEST_PAUSE_S, now
        if slept:
            self.woke.emit()
