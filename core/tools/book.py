"""The user's tool settings: servers, and which tools may be called without asking. Keys are in the system's keyring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from core.files import keep
from core.keyring import Keyring, keep_secret, kept_secret
from core.tools.server import ToolServer

SERVICE = "HeteGen tool server"
Permission = Literal["ask", "always", "never"]


@dataclass(frozen=True)
class Book:
    """`permissions`: by server and tool; the default is to ask."""

    servers: tuple[ToolServer, ...] = ()
    permissions: Mapping[tuple[str, str], Permission] = field(default_factory=dict)

    def permission(self, server: str, tool: str) -> Permission:
        """Return the permission of a tool."""
        return self.permissions.get((server, tool), "ask")

    def permit(self, server: str, tool: str, permission: Permission) -> Book:
        """Return a copy with a tool's permission changed."""
        return replace(self, permissions={**self.permissions, (server, tool): permission})

    def put(self, server: ToolServer, former: str = "") -> Book:
        """Return a copy with a server in place of the one named `former` or like itself, otherwise appended."""
        names = {server.name, former}
        at = next((i for i, one in enumerate(self.servers) if one.name in names), len(self.servers))
        others = [one for one in self.servers if one.name not in names]
        return replace(self, servers=(*others[:at], server, *others[at:]))

    def without(self, name: str) -> Book:
        """Return a copy without a server and its permissions."""
        servers = tuple(one for one in self.servers if one.name != name)
        return Book(servers, {key: value for key, value in self.permissions.items() if key[0] != name})


def read_book(path: Path, keyring: Keyring) -> Book:
    """Read the settings at `path`; empty ones if it cannot be read."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        servers = tuple(_server(entry, keyring) for entry in kept["servers"])
        permissions = {(server, tool): value for server, tool, value in kept["permissions"] if value in _ALLOWED}
    except (OSError, ValueError, KeyError, TypeError):
        return Book()
    return Book(servers, permissions)


def write_book(path: Path, book: Book, former: Book, keyring: Keyring) -> bool:
    """Save the settings atomically; return whether their keys could be stored, too."""
    keep(path, {
        "servers": [_table(server) for server in book.servers],
        "permissions": [[*key, value] for key, value in book.permissions.items()],
    })  # fmt: skip
    before = {server.name: _secrets(server) for server in former.servers}
    now = {server.name: _secrets(server) for server in book.servers}
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    kept = [keep_secret(keyring, SERVICE, name, now.get(name, "")) for name in changed]
    return all(kept)


_ALLOWED = get_args(Permission)


def _table(server: ToolServer) -> dict[str, Any]:
    return {
        "name": server.name, "command": server.command, "args": list(server.args), "folder": server.folder,
        "url": server.url, "on": server.on, "environment": list(server.environment), "headers": list(server.headers),
    }  # fmt: skip


def _server(entry: Mapping[str, Any], keyring: Keyring) -> ToolServer:
    name = str(entry["name"])
    known = _kept(keyring, name) if entry["environment"] or entry["headers"] else {}
    environment, headers = (
        {str(key): str(known.get(kind, {}).get(key, "")) for key in entry[kind]} for kind in ("environment", "headers")
    )
    command, folder, url = (str(entry[part]) for part in ("command", "folder", "url"))
    return ToolServer(
        name, command, tuple(map(str, entry["args"])), environment, folder, url, headers, bool(entry["on"])
    )


def _secrets(server: ToolServer) -> str:
    """Return the values for the keyring as one JSON text; "" if there are none."""
    if not server.environment and not server.headers:
        return ""
    return json.dumps({"environment": dict(server.environment), "headers": dict(server.headers)})


def _kept(keyring: Keyring, name: str) -> dict[str, Any]:
    try:
        found = json.loads(kept_secret(keyring, SERVICE, name) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
