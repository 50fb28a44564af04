"""Detects that the computer was asleep: wall-clock time went on while this program's timer stood still.

No portable notification exists. Setting the clock forward looks the same, which does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Signal, Slot

LOOK_MS = 5000
LONGEST_PAUSE_S = 60.0
"""Longest delay of a timer on a busy computer; a longer one means sleep."""


class SleepWatch(QObject):
    """Watches for sleep.

    Signal: `woke` soon after the computer wakes.
    """

    woke = Signal()

    def __init__(self, clock: Callable[[], float] = time.time, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._clock = clock
        self._looked_at = clock()
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self.look)

    def start(self) -> None:
        """Start watching."""
        self._looked_at = self._clock()
        self._timer.start()

    def stop(self) -> None:
        """Stop watching."""
        self._timer.stop()

    @Slot()
    def look(self) -> None:
        """Compare the clock with the previous look."""
        now = self._clock()
        slept, self._looked_at = now - self._looked_at > LONGEST_PAUSE_S, now
        if slept:
            self.woke.emit()
