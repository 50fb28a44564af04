"""The servers that a user has saved: names and addresses in a file; keys in the keyring (`core.remote.keys`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from core.files import keep
from core.remote.endpoint import base_url


@dataclass(frozen=True)
class SavedEndpoint:
    """`address` as typed; `model`: the one last used there, "" = not chosen yet."""

    name: str
    address: str
    model: str = ""

    @property
    def url(self) -> str:
        """The address in the form that requests and keys use. Raises BadRequest."""
        return base_url(self.address)


def read_saved(path: Path) -> tuple[SavedEndpoint, ...]:
    """Read the servers saved at `path`; none if it cannot be read."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        return tuple(SavedEndpoint(*(str(one[part]) for part in ("name", "address", "model"))) for one in kept)
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def write_saved(path: Path, saved: Iterable[SavedEndpoint]) -> None:
    """Save the servers atomically."""
    keep(path, [asdict(one) for one in saved])


def put(saved: Iterable[SavedEndpoint], one: SavedEndpoint, former: str = "") -> tuple[SavedEndpoint, ...]:
    """Return the list with a server in place of the one named `former` or like itself, otherwise appended."""
    kept = list(saved)
    at = next((place for place, each in enumerate(kept) if each.name in (one.name, former)), len(kept))
    others = [each for each in kept if each.name not in (one.name, former)]
    return (*others[:at], one, *others[at:])
