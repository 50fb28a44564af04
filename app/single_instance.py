"""One window per person: a second start shows the first one's window and ends."""

from __future__ import annotations

import getpass
import hashlib
import logging
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from app import ID

log = logging.getLogger(__name__)
ANSWER_MS = 500


class SingleInstance(QObject):
    """`woken` when the program was started again. `claim()` first."""

    woken = Signal()

    def __init__(self, data: Path) -> None:
        super().__init__()
        # Another data folder is another program: portable copies and tests do not wake each other.
        owner = hashlib.sha256(f"{getpass.getuser()} {data}".encode()).hexdigest()
        self._name = f"{ID}-{owner[:16]}"
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._on_call)

    def claim(self) -> bool:
        """True if this is the first; else the first one is told to show itself."""
        if self._call():
            return False
        if not self._server.listen(self._name):
            # Nobody answers there: what is left of a program that crashed.
            QLocalServer.removeServer(self._name)
            if not self._server.listen(self._name):
                log.warning("Whether another window is open cannot be told: %s", self._server.errorString())
        return True

    def release(self) -> None:
        """Another may be the first from now on."""
        self._server.close()

    def _call(self) -> bool:
        socket = QLocalSocket()
        socket.connectToServer(self._name)
        found = socket.waitForConnected(ANSWER_MS)
        if found:
            socket.disconnectFromServer()
        return found

    @Slot()
    def _on_call(self) -> None:
        while self._server.hasPendingConnections():
            caller = self._server.nextPendingConnection()
            caller.disconnected.connect(caller.deleteLater)
            caller.disconnectFromServer()
        self.woken.emit()
