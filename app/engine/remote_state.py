"""State of the page of remote models."""

from __future__ import annotations

from dataclasses import dataclass

from core.remote.check import Outcome
from core.remote.saved import SavedEndpoint


@dataclass(frozen=True)
class RemoteState:
    """What is known of the servers.

    `outcomes`: the steps of the last test so far; `busy`: whether it runs; `address`: as typed; `saved`: the servers
    kept.
    """

    address: str = ""
    busy: bool = False
    outcomes: tuple[Outcome, ...] = ()
    saved: tuple[SavedEndpoint, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the server offers."""
        return self.outcomes[-1].models if self.outcomes else ()
