"""One window per user: a second start raises the first window, hands it the file, and ends."""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

from PySide6.QtCore import QDir, QLockFile, QObject, Signal, Slot
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from app import ID

log = logging.getLogger(__name__)
CONNECT_MS, ANSWER_MS = 500, 2000
ANSWER, END = b"!", b"\n"
MOST_BYTES = 1 << 16
"""Longest message accepted from another start."""
ENDING_S = 30.0
"""How long to wait for a program that has closed its window but is still saving and joining threads."""
ANY_PROGRAM = 0xFFFFFFFF
"""Windows' ASFW_ANY."""


class SingleInstance(QObject):
    """The local socket between starts of the program; call `claim()` first.

    Signals: `woken` when the program was started again; `asked(path)` if that start named a model.
    """

    woken = Signal()
    asked = Signal(str)

    def __init__(self, data: Path) -> None:
        super().__init__()
        # Part of the name: portable copies and tests with another data folder are separate programs.
        owner = hashlib.sha256(f"{getpass.getuser()} {data}".encode()).hexdigest()
        self.name = f"{ID}-{owner[:16]}"
        """The local socket name on which the first program listens."""
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._on_call)

    def claim(self, model: str = "") -> bool:
        """Return whether this is the first start; if not, raise the first window and let it open `model`.

        An empty `model` opens none. Waits for a first program that is ending, and for another start at the same moment,
        as after a double click: each would find nobody, and remove the other's socket as a crash's.
        """
        turn = QLockFile(f"{QDir.tempPath()}/{self.name}.lock")
        turn.tryLock(round(ENDING_S * 1000))
        try:
            return self._claim(model)
        finally:
            turn.unlock()

    def _claim(self, model: str) -> bool:
        end = time.monotonic() + ENDING_S
        while (answered := self._call(model)) is None and time.monotonic() < end:
            time.sleep(0.1)
        if answered:
            return False
        if not self._server.listen(self.name):
            # Nobody answers: remove what a crashed program left.
            QLocalServer.removeServer(self.name)
            if not self._server.listen(self.name):
                log.warning("Whether another window is open cannot be told: %s", self._server.errorString())
        return True

    def release(self) -> None:
        """Give up the claim: another start may be the first from now on."""
        self._server.close()

    def _call(self, model: str) -> bool | None:
        """Return whether a window answers; None if a program is there but does not answer."""
        socket = QLocalSocket()
        socket.connectToServer(self.name)
        if not socket.waitForConnected(CONNECT_MS):
            return False
        _give_up_the_front()
        socket.write(json.dumps(model).encode() + END)
        socket.waitForBytesWritten(CONNECT_MS)
        answered = self._is_answered(socket)
        socket.abort()
        return answered or None

    @staticmethod
    def _is_answered(socket: QLocalSocket) -> bool:
        # Data that arrived before this call, or before the other end closed, counts as well.
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
        """Read a model's name once its line is complete; ignore callers that send too much or nonsense."""
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


def _give_up_the_front() -> None:
    """Let the first window come to the front, which Windows allows only to the program just started by the user."""
    if sys.platform == "win32":
        ctypes.windll.user32.AllowSetForegroundWindow(ANY_PROGRAM)
