"""Names under which models call tools: restricted to characters that every model's API accepts, and unique."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.events import Tool
from core.tools.server import ServerTool

LONGEST = 64


@dataclass(frozen=True)
class Offer:
    """A tool as offered to models, with its server and its name there."""

    tool: Tool
    server: str
    name: str


def offers(servers: Mapping[str, Sequence[ServerTool]]) -> tuple[Offer, ...]:
    """Return every tool of every server. A name used by several servers is prefixed with the server's."""
    counts: dict[str, int] = {}
    for tools in servers.values():
        for name in {_plain(tool.name) for tool in tools}:
            counts[name] = counts.get(name, 0) + 1
    taken: set[str] = set()
    found = []
    for server, tools in servers.items():
        for tool in tools:
            plain = _plain(tool.name)
            name = _free(plain if counts[plain] == 1 else f"{_plain(server)}_{plain}", taken)
            found.append(Offer(Tool(name, tool.description, tool.parameters), server, tool.name))
    return tuple(found)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST] or "tool"


def _free(name: str, taken: set[str]) -> str:
    fresh, number = name[:LONGEST], 2
    while fresh in taken:
        ending = f"_{number}"
        fresh, number = name[: LONGEST - len(ending)] + ending, number + 1
    taken.add(fresh)
    return fresh
