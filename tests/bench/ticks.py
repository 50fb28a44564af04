"""Tick delays of the window's event loop: a pause that users would feel is a late tick."""

from __future__ import annotations

import time

from PySide6.QtCore import Qt, QTimer

TICK_MS = 10


class Ticks:
    """Records how late each tick of a timer comes, since `reset`."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self._last = time.perf_counter()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._on_tick)
        self._timer.start(TICK_MS)

    def reset(self) -> None:
        self.late, self._last = [], time.perf_counter()

    def summary(self) -> dict[str, float]:
        late = sorted(self.late)
        return {
            "p50_ms": round(late[len(late) // 2], 2),
            "p99_ms": round(late[int(len(late) * 0.99)], 2),
            "worst_ms": round(late[-1], 2),
            "ticks": len(late),
        }

    def _on_tick(self) -> None:
        now = time.perf_counter()
        self.late.append(max(0.0, (now - self._last) * 1e3 - TICK_MS))
        self._last = now
