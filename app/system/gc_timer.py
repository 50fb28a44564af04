"""Python's garbage is collected by the window's thread alone.

Qt wants its objects deleted in the thread that they live in, but Python's own collector runs in whichever thread
allocates: the engine's, say, while it writes a reply. A dialog's timers found there would crash the program.
"""

from __future__ import annotations

import gc

from PySide6.QtCore import QObject, QTimer, Slot

EVERY_MS = 1000
AFTER_START_MS = 10_000
"""By then torch is imported, whose many objects are frozen: to look through them would stop the window."""


class Collector(QObject):
    """Collects garbage by a timer, in place of the automatic collection."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        gc.disable()
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY_MS)
        self._timer.timeout.connect(self.collect)
        QTimer.singleShot(AFTER_START_MS, self._timer, self._timer.start)

    @Slot()
    def collect(self) -> None:
        """The oldest generation whose turn it is, by Python's own thresholds."""
        counts = enumerate(zip(gc.get_count(), gc.get_threshold(), strict=True))
        due = [generation for generation, (count, limit) in counts if 0 < limit < count]
        if due:
            gc.collect(due[-1])
