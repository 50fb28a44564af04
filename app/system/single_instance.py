"""One window per person: a second start shows the first one's window, hands its file over, and ends."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import time
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from app import ID

log = logging.getLogger(__name__)
CONNECT_MS, ANSWER_MS = 500, 2000
ANSWER, END = b"!", b"\n"
MOST_BYTES = 1 << 16
"""The longest name that is taken from another start."""
ENDING_S = 30.0
"""How long a program is waited for that has closed its window, but still saves and joins its threads."""


class SingleInstance(QObject):
    """`woken` when the program was started again, and `asked(path)` where that was with a model. `claim()` first."""

    woken = Signal()
    asked = Signal(str)

    def __init__(self, data: Path) -> None:
        super().__init__()
        # Another data folder is another program: portable copies and tests do not wake each other.
        owner = hashlib.sha256(f"{getpass.getuser()} {data}".encode()).hexdigest()
        self.name = f"{ID}-{owner[:16]}"
        """The local address that the first program listens on."""
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._on_call)

    def claim(self, model: str = "") -> bool:
        """True if this is the first; else the first one is told to show itself, and to open `model` ("" = none). One
        that is ending is waited for."""
        end = time.monotonic() + ENDING_S
        while (answered := self._call(model)) is None and time.monotonic() < end:
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

    def _call(self, model: str) -> bool | None:
        """Whether a window answers; None where somebody is there who does not."""
        socket = QLocalSocket()
        socket.connectToServer(self.name)
        if not socket.waitForConnected(CONNECT_MS):
            return False
        socket.write(json.dumps(model).encode() + END)
        socket.waitForBytesWritten(CONNECT_MS)
        answered = self._is_answered(socket)
        socket.abort()
        return answered or None

    @staticmethod
    def _is_answered(socket: QLocalSocket) -> bool:
        # What has arrived before, while something was written or the other end was closed, counts, too.
        return socket.bytesAvailable() > 0 or socket.waitForReadyRead(ANSWER_MS) or socket.bytesAvailable() > 0

    @Slot()
    def _on_call(self) -> None:
        while self._server.hasPendingConnections():
            caller = self._server.nextPendingConnection()
            caller.disconnected.connect(caller.deleteLater)
            caller.readyRead.connect(self._on_said)
            caller.write(ANSWER)
            caller.flush()
            self._listen(caller)
        self.woken.emit()

    @Slot()
    def _on_said(self) -> None:
        caller = self.sender()
        assert isinstance(caller, QLocalSocket)
        self._listen(caller)

    def _listen(self, caller: QLocalSocket) -> None:
        """Take the model's name once all of it has arrived; who says too much or nonsense is not heard."""
        if not caller.canReadLine():
            if caller.bytesAvailable() > MOST_BYTES:
                caller.abort()
            return
        try:
            model = json.loads(bytes(caller.readLine(MOST_BYTES).data()))
        except ValueError:
            model = ""
        caller.disconnectFromServer()
        if isinstance(model, str) and model:
            self.asked.emit(model)
