"""How a tool server is reached, and its current state: frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.errors import HeteGenError

Phase = Literal["off", "starting", "on", "failed"]


@dataclass(frozen=True)
class ToolServer:
    """A program to start (`command` with `args`), or the address (`url`) of a running server.

    `environment` and `headers` may hold keys: they are excluded from `repr`, logs and files.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: str = ""
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    on: bool = True

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must not appear in logs."""
        values = (*self.environment.values(), *self.headers.values())
        return tuple(sorted((value for value in values if len(value) > 3), key=len, reverse=True))


@dataclass(frozen=True)
class ServerTool:
    """A tool as described by its server. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerStatus:
    """The current state of one server. `error`: why its last start failed; `log`: its latest lines, oldest first."""

    name: str
    phase: Phase = "off"
    tools: tuple[ServerTool, ...] = ()
    error: HeteGenError | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolResult:
    """A call's result as the model reads it. `failed`: reported by the tool or its server."""

    text: str
    failed: bool = False
