"""Fixtures of the tools' tests: a tool host that is closed at the test's end, and waiting for its status."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.tools.host import ToolHost
from core.tools.server import ServerStatus, ToolServer

SCRIPT = Path(__file__).with_name("stdio_server.py")
PATIENCE_S = 120.0


class Stage:
    """A host, and the latest status of each server."""

    def __init__(self, logs: Path | None = None) -> None:
        self._news = threading.Condition()
        self._shown: dict[str, ServerStatus] = {}
        self.host = ToolHost(self._on_changed, logs)

    def _on_changed(self, shown: tuple[ServerStatus, ...]) -> None:
        with self._news:
            self._shown = {status.name: status for status in shown}
            self._news.notify_all()

    def until(self, name: str, true: Callable[[ServerStatus], bool]) -> ServerStatus:
        """Wait until a server's status satisfies a condition, and return it."""
        with self._news:
            assert self._news.wait_for(lambda: name in self._shown and true(self._shown[name]), PATIENCE_S), (
                self._shown.get(name)
            )
            return self._shown[name]

    def started(self, *servers: ToolServer) -> None:
        self.host.use(servers)
        for server in servers:
            self.until(server.name, lambda status: status.phase == "on")

    def call(self, tool: str, longest: int = 1000, server: str = "test", **arguments: object) -> str:
        return self.host.call(server, tool, arguments, longest).result(PATIENCE_S).text


def script(*arguments: str, name: str = "test", **more: object) -> ToolServer:
    """Return the server of this folder as a program."""
    return ToolServer(name, sys.executable, (str(SCRIPT), *arguments), **more)  # type: ignore[arg-type]


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.host.close()
