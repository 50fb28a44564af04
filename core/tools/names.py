"""Names by which models call tools: of the letters that every model's interface takes, and each of them once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.events import Tool
from core.tools.server import ServerTool

LONGEST = 64


@dataclass(frozen=True)
class Offer:
    """A tool as models are offered it, and whose it is."""

    tool: Tool
    server: str
    name: str


def offers(servers: Mapping[str, Sequence[ServerTool]]) -> tuple[Offer, ...]:
    """Every tool of every server. One name in several servers is told apart by the server's."""
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
