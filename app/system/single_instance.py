"""One window per person: a second start shows the first one's window and ends."""

from __future__ import annotations

import getpass
import hashlib
import logging
import time
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from app import ID

log = logging.getLogger(__name__)
CONNECT_MS, ANSWER_MS = 500, 2000
ANSWER = b"!"
ENDING_S = 30.0
"""How long a program is waited for that has closed its window, but still saves and joins its threads."""


class SingleInstance(QObject):
    """`woken` when the program was started again. `claim()` first."""

    woken = Signal()

    def __init__(self, data: Path) -> None:
        super().__init__()
        # Another data folder is another program: portable copies and tests do not wake each other.
        owner = hashlib.sha256(f"{getpass.getuser()} {data}".encode()).hexdigest()
        self.name = f"{ID}-{owner[:16]}"
        """The local address that the first program listens on."""
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._on_call)

    def claim(self) -> bool:
        """True if this is the first; else the first one is told to show itself. One that is ending is waited for."""
        end = time.monotonic() + ENDING_S
        while (answered := self._call()) is None and time.monotonic() < end:
            time.sleep(0.1)
        if answered:
            return False
        if not self._server.listen(self.name):
            # Nobody answers there: what is left of a program that crashed.
            QLocalServer.removeServer(self.name)
            if not self._server.listen(self.name):
                log.warning("Whether another window is open cannot be told: %s", self._server.errorString())
        return True

    def release(self) -> None:
        """Another may be the first from now on."""
        self._server.close()

    def _call(self) -> bool | None:
        """Whether a window answers; None where somebody is there who does not."""
        socket = QLocalSocket()
        socket.connectToServer(self.name)
        if not socket.waitForConnected(CONNECT_MS):
            return False
        # What has arrived before the other end was closed counts, too.
        answered = socket.waitForReadyRead(ANSWER_MS) or socket.bytesAvailable() > 0
        socket.abort()
        return answered or None

    @Slot()
    def _on_call(self) -> None:
        while self._server.hasPendingConnections():
            caller = self._server.nextPendingConnection()
            caller.disconnected.connect(caller.deleteLater)
            caller.write(ANSWER)
            caller.flush()
            caller.disconnectFromServer()
        self.woken.emit()
