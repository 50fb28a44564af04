"""What is known of a server that a user wants to reach: the state behind the page of remote models."""

from __future__ import annotations

from dataclasses import dataclass

from core.remote.check import Outcome
from core.remote.saved import SavedEndpoint


@dataclass(frozen=True)
class RemoteState:
    """`outcomes`: the steps of the last test so far; `busy` while it runs; `address` as it was typed; `saved`: the
    servers that are kept."""

    address: str = ""
    busy: bool = False
    outcomes: tuple[Outcome, ...] = ()
    saved: tuple[SavedEndpoint, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the server named."""
        return self.outcomes[-1].models if self.outcomes else ()
