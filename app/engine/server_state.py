"""State of the server page, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from core.errors import HeteGenError
from core.server.activity import Snapshot

Phase = Literal["off", "starting", "on", "stopping"]


@dataclass(frozen=True)
class ServerState:
    """What the page shows. `wide`: other computers can connect, with `key`. `error`: why the last start failed."""

    phase: Phase = "off"
    address: str = ""
    wide: bool = False
    key: str = ""
    error: HeteGenError | None = None
    activity: Snapshot = field(default_factory=lambda: Snapshot((), (), ()))
