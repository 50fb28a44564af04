"""Ctrl+C in the terminal, and the system's request to end, close the window in order instead of ending the process."""

from __future__ import annotations

import signal
import socket
from types import FrameType

from PySide6.QtCore import QObject, QSocketNotifier, Signal, Slot

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""SIGHUP: its terminal is closed (not on Windows). SIGBREAK: the same on Windows."""


class Interrupts(QObject):
    """Turns signals of the system into one of Qt; the same one again ends the process at once.

    Signal: `asked`. Python runs a handler only once it runs Python code, which an idle window does not: a socket wakes
    the event loop.
    """

    asked = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._heard, self._told = socket.socketpair()
        for end in (self._heard, self._told):
            end.setblocking(False)
        self._notifier = QSocketNotifier(self._heard.fileno(), QSocketNotifier.Type.Read, self)
        self._notifier.activated.connect(self._on_signal)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for kind in ENDING:
            if signal.getsignal(kind) != signal.SIG_IGN:  # which who started it wants, as `nohup` does
                signal.signal(kind, _once)

    @Slot()
    def _on_signal(self) -> None:
        if any(number in ENDING for number in self._heard.recv(64)):
            self.asked.emit()


def _once(kind: int, frame: FrameType | None) -> None:
    signal.signal(kind, signal.SIG_DFL)
