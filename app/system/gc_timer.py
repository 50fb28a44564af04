"""Runs Python's garbage collector in the window's thread only.

Qt objects must be deleted in the thread they live in, but Python's automatic collection runs in whichever thread
allocates, such as the engine's during a reply. Collecting a dialog's timers there would crash the program.
"""

from __future__ import annotations

import gc

from PySide6.QtCore import QObject, QTimer, Slot

EVERY_MS = 1000
AFTER_START_MS = 10_000
"""Delay until torch is imported and its many objects are frozen: scanning them would block the window."""


class Collector(QObject):
    """Collects garbage on a timer instead of automatically."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        gc.disable()
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY_MS)
        self._timer.timeout.connect(self.collect)
        QTimer.singleShot(AFTER_START_MS, self._timer, self._timer.start)

    @Slot()
    def collect(self) -> None:
        """Collect the oldest generation that is due by Python's own thresholds."""
        counts = enumerate(zip(gc.get_count(), gc.get_threshold(), strict=True))
        due = [generation for generation, (count, limit) in counts if 0 < limit < count]
        if due:
            gc.collect(due[-1])
