"""How a tool server is reached, and what is known of it: frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.errors import HeteGenError

Phase = Literal["off", "starting", "on", "failed"]


@dataclass(frozen=True)
class ToolServer:
    """A program to start (`command` with `args`), or an address (`url`) where one waits.

    `environment` and `headers` may hold keys: they are kept out of the record's text, of logs and of files.
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
        """Values that no log may show."""
        values = (*self.environment.values(), *self.headers.values())
        return tuple(sorted((value for value in values if len(value) > 3), key=len, reverse=True))


@dataclass(frozen=True)
class ServerTool:
    """A tool as its server describes it. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerStatus:
    """What is known of one server now. `error`: why its last start failed; `log`: its latest lines, oldest first."""

    name: str
    phase: Phase = "off"
    tools: tuple[ServerTool, ...] = ()
    error: HeteGenError | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolResult:
    """What came of a call, as the model reads it. `failed`: the tool or its server says so."""

    text: str
    failed: bool = False
