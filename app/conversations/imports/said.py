"""The common form of all imports: messages in a tree."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
    "chatgpt": "assistant", "claude": "assistant", "bard": "assistant", "bing": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_call": "tool", "tool_call": "tool",
    "tool_response": "tool", "ipython": "tool", "function_response": "tool",
}  # fmt: skip
# (threshold, units per second): larger times are in nanoseconds, microseconds or milliseconds, not in seconds.
SMALLER_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


class NothingSaid(ValueError):
    """A conversation without messages: there is nothing to import, and nothing is missing."""


@dataclass(frozen=True)
class Said:
    """One message of an export. `aside`: thoughts, tool calls and their results, to go with the next answer."""

    id: Hashable
    parent: Hashable
    role: str
    content: str
    aside: str = ""
    created: float | None = None
    model: str = ""


def role(value: Any) -> str:
    """Map a program's name of a role to ours. Raises KeyError."""
    return ROLES[str(value).strip().lower()]


def seconds(value: Any) -> float | None:
    """Parse a time in any form to seconds since 1970; None if it is not a time."""
    try:
        if isinstance(value, str):
            value = float(value) if value.replace(".", "", 1).isdigit() else datetime.fromisoformat(value).timestamp()
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        number = float(value)
    except (ValueError, OverflowError, OSError):
        return None
    scale = next((scale for least, scale in SMALLER_UNITS if number > least), 1.0)
    return number / scale if 0 < number < 1e20 else None


def chained(messages: Sequence[Said]) -> list[Said]:
    """Link messages so that each one follows the one before it."""
    return [replace(message, id=n, parent=n - 1 if n else None) for n, message in enumerate(messages)]


def table(title: Any, messages: Sequence[Said], current: Hashable = None, system: str = "") -> dict[str, Any]:
    """Build a table like those of our own exports. Raises NothingSaid, or ValueError if no message has words."""
    if not any(said.role in ("user", "assistant") for said in messages):
        raise NothingSaid
    systems = [system, *dict.fromkeys(said.content for said in messages if said.role == "system")]
    turns = list(_Walk(messages).turns(current))
    if not turns:
        raise ValueError("no words")
    text = "\n".join(part for part in systems if part.strip())
    return {"title": title if isinstance(title, str) else "", "system": text, "turns": turns}


class _Walk:
    """Walk over the tree, parents before children. Messages without an answer hand their asides on."""

    def __init__(self, messages: Sequence[Said]) -> None:
        known = {said.id for said in messages}
        self._children: dict[Hashable, list[Said]] = {}
        for said in messages:
            self._children.setdefault(said.parent if said.parent in known else None, []).append(said)
        self._shown: dict[Hashable, Hashable] = {}

    def turns(self, current: Hashable) -> Iterator[dict[str, Any]]:
        """Yield the turns; the one that `current` led to is marked as shown."""
        found = list(self._found())
        shown = self._shown.get(current) if current is not None else None
        for turn in found:
            yield {**turn, "shown": shown is not None and turn["id"] == shown}

    def _found(self) -> Iterator[dict[str, Any]]:
        waiting: list[tuple[Said, Hashable, str]] = [
            (said, None, "") for said in reversed(self._children.get(None, []))
        ]
        seen: set[Hashable] = set()
        while waiting:
            said, parent, aside = waiting.pop()
            if said.id in seen:
                continue
            seen.add(said.id)
            children = self._children.get(said.id, [])
            aside = "\n\n".join(part for part in (aside, said.aside) if part.strip())
            if aside and (said.role == "user" or not (children or said.content.strip())):
                yield (turn := _turn(Said(("aside", said.id), None, "assistant", "", aside, said.created), parent))
                parent, aside = turn["id"], ""
            if said.content.strip() and said.role in ("user", "assistant"):
                yield (turn := _turn(replace(said, aside=aside), parent))
                parent, aside = turn["id"], ""
            self._shown[said.id] = parent
            waiting += [(child, parent, aside) for child in reversed(children)]


def _turn(said: Said, parent: Hashable) -> dict[str, Any]:
    return {
        "id": said.id,
        "parent": parent,
        "role": said.role,
        "content": said.content,
        "reasoning": said.aside,
        "created": said.created,
        "receipt": {"model": said.model} if said.model else {},
    }
