"""Finds the chat template in a model folder, among the several file layouts in use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Names of chat templates among several, by preference; those for tools and documents come last.
FOR_CHATS = ("default", "chat", "chat_template", "instruct", "thinking")
FOR_TOOLS = ("tool_use", "tool", "tools")
FOR_OTHERS = (*FOR_TOOLS, "rag")
JSON_FILES = ("chat_template.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")


def find_template(folder: Path | None, known: Any, *, for_tools: bool = False) -> str:
    """Return the chat template: `known` (from the tokenizer's files), or one found in the folder. "" = none.

    `for_tools`: return the separate template for tools that some models have.
    """
    choose = chosen_for_tools if for_tools else chosen
    for candidate in (known, *(_in_folder(folder) if folder is not None else ())):
        if text := choose(candidate).removeprefix("\ufeff"):
            return text
    return ""


def chosen(value: Any) -> str:
    """Return the chat template: the value itself, or one of several named ones."""
    if isinstance(value, str):
        return value
    named = _named(value)
    return named[min(named, key=_rank)] if named else ""


def chosen_for_tools(value: Any) -> str:
    """Return the template for tools among several named ones; "" if there is none."""
    named = _named(value)
    return next((named[name] for name in FOR_TOOLS if name in named), "")


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, list):
        value = {each.get("name"): each.get("template") for each in value if isinstance(each, Mapping)}
    if not isinstance(value, Mapping):
        return {}
    return {str(name): text for name, text in value.items() if isinstance(text, str) and text.strip()}


def _rank(name: str) -> tuple[int, str]:
    if name in FOR_CHATS:
        return FOR_CHATS.index(name), name
    return len(FOR_CHATS) + (name in FOR_OTHERS), name


def _in_folder(folder: Path) -> Iterator[Any]:
    yield _text(folder / "chat_template.jinja")
    for name in JSON_FILES:
        content = _json(folder / name)
        yield content.get("chat_template") if isinstance(content, Mapping) else content
    yield {path.stem: _text(path) for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    yield {path.stem: _text(path) for path in sorted(folder.glob("*.jinja"))}


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError):
        return None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data.startswith(BYTE_ORDER_MARKS) else "utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""
