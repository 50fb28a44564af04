"""Parses tool servers in other programs' formats: Claude Desktop's and Cursor's "mcpServers", VS Code's "servers"."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from core.errors import BadRequest
from core.sentence import sentence
from core.tools.server import ToolServer

TABLES = ("mcpServers", "servers")
NEXT = "Paste the text that the server's own page shows for Claude Desktop or VS Code."
REFERENCE = re.compile(r"\$\{(input|env):[^}]*\}")
"""A placeholder in VS Code's files that the program is meant to prompt for."""


def parse_servers(text: str) -> tuple[ToolServer, ...]:
    """Return the servers of a pasted text. Raises BadRequest."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The text is not JSON.", f"{error}.", NEXT) from error
    table = _table(value)
    if not table:
        raise BadRequest("The text names no server.", "", NEXT)
    return tuple(_server(str(name), entry) for name, entry in table.items())


def _table(value: Any) -> dict[str, Any]:
    """Return the entries by name, from wherever they are in the text."""
    if not isinstance(value, dict):
        return {}
    for name in TABLES:
        if isinstance(value.get(name), dict):
            return dict(value[name])
    if isinstance(value.get("mcp"), dict):
        return _table(value["mcp"])
    if "command" in value or "url" in value:
        return {str(value.get("name", "")): value}
    return value if all(isinstance(entry, dict) for entry in value.values()) else {}


def _server(name: str, entry: Any) -> ToolServer:
    if not isinstance(entry, dict):
        raise BadRequest(sentence("The entry {} is not a server.", name), "", NEXT)
    command, url = _text(entry, "command"), _text(entry, "url") or _text(entry, "serverUrl")
    args = entry.get("args", [])
    if not isinstance(args, list) or not all(isinstance(one, str) for one in args):
        raise BadRequest(sentence("The arguments of {} are not a list of texts.", name), "", NEXT)
    found = ToolServer(
        name.strip() or _name_for(command, url),
        command,
        tuple(args),
        _texts(name, entry.get("env")),
        _text(entry, "cwd"),
        url,
        _texts(name, entry.get("headers")),
        not entry.get("disabled", False),
    )
    check_server(found)
    return found


def check_server(server: ToolServer) -> None:
    """Raise BadRequest for a server that cannot be reached as described."""
    if not server.command and not server.url:
        raise BadRequest(sentence("{} has neither a command nor an address.", server.name), "", "Enter one of the two.")
    if server.url and not _is_address(server.url):
        raise BadRequest(
            sentence("{} is not the address of a server.", server.url),
            "",
            "Enter one such as http://127.0.0.1:8000/mcp.",
        )
    texts = (server.command, *server.args, *server.environment.values(), *server.headers.values())
    if gap := next((found[0] for text in texts if (found := REFERENCE.search(text))), ""):
        raise BadRequest(
            sentence("{} has a gap to fill in: {}.", server.name, gap), "", "Put the value itself in its place."
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _name_for(command: str, url: str) -> str:
    return (urlsplit(url).hostname or "" if url else re.split(r"[\\/]", command)[-1]) or "server"


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value.strip() if isinstance(value, str) else ""


def _texts(server: str, value: Any) -> dict[str, str]:
    """Return a table of texts; numbers and booleans are converted as in an environment. Raises BadRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or any(isinstance(one, dict | list) for one in value.values()):
        raise BadRequest(sentence("The environment of {} is not a table of texts.", server), "", NEXT)
    return {str(key): one if isinstance(one, str) else json.dumps(one) for key, one in value.items() if one is not None}
