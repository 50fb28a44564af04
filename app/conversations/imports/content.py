"""The text of a message in any program's form: plain, or parts of many kinds."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

THOUGHT = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>\s*", re.DOTALL)
# Open WebUI stores a thought as a folded quotation in the text.
FOLDED = re.compile(
    r"<details\s+type=\"(?:reasoning|tool_calls|code_interpreter)\"[^>]*>\s*"
    r"(?:<summary>.*?</summary>)?(.*?)</details>\s*",
    re.DOTALL,
)
ASIDES = ("thinking", "reasoning", "thought", "reasoning_text", "summary_text", "redacted_thinking")
CALLS = ("tool_use", "tool_call", "function_call", "toolCallRequest", "server_tool_use", "mcp_call")
RESULTS = ("tool_result", "tool_response", "function_call_output", "toolCallResult", "web_search_tool_result")


def text_of(content: Any) -> tuple[str, str]:
    """Return what a message says, and what belongs beside it: thoughts, tool calls and results. Raises TypeError."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    parts = list(_parts(content))
    said = [text for text, aside in parts if text]
    asides = [aside for text, aside in parts if aside]
    text = "\n".join(said)
    if not text and (kinds := _kinds(content)):
        text = " ".join(f"[{kind}]" for kind in kinds)
    return text, "\n\n".join(asides)


def split_thought(text: str) -> tuple[str, str]:
    """Return an answer without thoughts at its beginning or folded into it, and those thoughts."""
    begun = THOUGHT.match(text)
    thoughts = [begun[1].strip()] if begun else []
    text = text[begun.end() :] if begun else text
    thoughts += [_unquoted(found[1]) for found in FOLDED.finditer(text)]
    return FOLDED.sub("", text), "\n\n".join(thought for thought in thoughts if thought)


def _unquoted(text: str) -> str:
    return html.unescape(re.sub(r"(?m)^\s*(?:>|&gt;) ?", "", text)).strip()


def call(name: Any, arguments: Any) -> str:
    """Format a tool call for people."""
    return _fenced(f"{name or 'tool'}({_written(arguments)})")


def result(value: Any) -> str:
    """Format a tool's result for people."""
    try:
        text, _ = text_of(value)
    except TypeError:
        text = ""
    return _fenced(text or _written(value)) if value not in (None, "") else ""


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part, ""
        elif isinstance(part, dict):
            yield _part(part)
        elif part is not None:
            raise TypeError(part)


def _part(part: dict[str, Any]) -> tuple[str, str]:
    kind = part.get("type") or part.get("content_type") or ""
    if kind in CALLS:
        function = part.get("function")
        inner = function if isinstance(function, dict) else part
        given = next((inner[key] for key in ("input", "arguments", "parameters") if inner.get(key) is not None), "")
        return "", call(inner.get("name"), given)
    if kind in RESULTS:
        return "", result(part.get("content", part.get("output")))
    text = _first_text(part, str(kind))
    return ("", text) if kind in ASIDES else (text, "")


def _first_text(part: dict[str, Any], kind: str) -> str:
    for key in ("text", kind, "value", "content", "parts", "refusal", "output", "transcript", "summary"):
        value = part.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, dict | list) and key:
            return text_of(value)[0]
    return ""


def _kinds(content: Any) -> list[str]:
    """Return the kinds of the attachments of a message without words."""
    parts = [part for part in (content if isinstance(content, list) else [content]) if isinstance(part, dict)]
    names = [str(part.get("type") or part.get("content_type") or "") for part in parts]
    kinds = ("image", "audio", "video", "file", "document")
    return [kind for name in names for kind in kinds if kind in name][: len(names)]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
