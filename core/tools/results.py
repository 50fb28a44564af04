"""Converts a tool's result to text for the model: parts joined, pictures and audio named, length limited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from core.tools.server import ToolResult

LONGEST = 64_000
"""Maximum characters of a result for a model."""


def as_result(answer: Any, longest: int = LONGEST) -> ToolResult:
    """Return the text of a CallToolResult, at most about `longest` characters."""
    text = "\n".join(_texts(answer.content))
    if not text and answer.structured_content is not None:
        text = json.dumps(answer.structured_content, ensure_ascii=False)
    return ToolResult(shortened(text, longest), bool(answer.is_error))


def shortened(text: str, longest: int) -> str:
    """Truncate a text and append a line that tells the model how much is missing."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}\n[{len(text) - longest} more characters were left out.]"


def _texts(parts: Any) -> Iterator[str]:
    for part in parts:
        match part.type:
            case "text":
                yield part.text
            case "image" | "audio":
                yield f"[{part.type}, {part.mime_type}, not shown]"
            case "resource_link":
                yield f"[{part.name}: {part.uri}]"
            case "resource":
                inner = part.resource
                yield getattr(inner, "text", None) or f"[file, {inner.uri}, not shown]"
            case _:
                yield f"[{part.type}, not shown]"
