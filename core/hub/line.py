"""Ends a connection's socket from another thread than the one that reads it."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress


def hang_up(line: socket.socket) -> None:
    """End a connection: a read in another thread returns or fails at once. Does nothing if it has ended."""
    with suppress(OSError):
        if sys.platform == "win32":
            # On Windows a waiting read goes on after a shutdown, and only closing wakes it. Elsewhere closing wakes
            # none (Linux), also after a shutdown (macOS), and the reader might get another file's data.
            socket.close(socket.socket.detach(line))
        else:
            # The base class's method: SSLSocket.shutdown would drop its TLS state under the reading thread.
            socket.socket.shutdown(line, socket.SHUT_RDWR)
