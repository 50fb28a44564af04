"""State of the tools page, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.tools.book import Book
from core.tools.server import ServerStatus


@dataclass(frozen=True)
class ToolsState:
    """What the page shows. `keyless`: keys could not be stored and are forgotten when the program ends."""

    book: Book = field(default_factory=Book)
    statuses: tuple[ServerStatus, ...] = ()
    keyless: bool = False

    def status(self, name: str) -> ServerStatus:
        """Return what is known of one server."""
        return next((one for one in self.statuses if one.name == name), ServerStatus(name))
