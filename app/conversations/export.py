"""Conversations as files: Markdown for people, JSON for keeping and for other programs, and JSON back in.

The JSON holds the whole tree with every version; Markdown only the branch that is shown. Knows no database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.conversations.conversation import Conversation, Turn
from core.errors import HeteGenError
from core.files import without_halves

FORMAT, VERSION = "hetegen-conversations", 1
ROLES = ("system", "user", "assistant")
MAX_IMPORT_BYTES = 1 << 30


class NotAnExport(HeteGenError):
    """The file does not hold conversations in a form that is known here."""


@dataclass(frozen=True)
class Document:
    """A conversation with what belongs to it outside the tree. `created`: seconds since 1970 by the turn's id."""

    conversation: Conversation
    pinned: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    created: Mapping[str, float] = field(default_factory=dict)


def to_markdown(document: Document) -> str:
    """The shown branch under headings; reasoning folded, the figures of each reply in small print."""
    conversation = document.conversation
    parts = [f"# {_one_line(conversation.title) or 'Conversation'}"]
    if conversation.system:
        parts.append(_quote(f"System prompt: {conversation.system}"))
    for turn in conversation.path():
        parts += _markdown_of(turn, document.created.get(turn.id))
    return "\n\n".join(parts) + "\n"


def _markdown_of(turn: Turn, created: float | None) -> Iterator[str]:
    speaker = {"user": "You", "assistant": str(turn.receipt.get("model") or "Model")}.get(turn.role, "System")
    when = f" · {datetime.fromtimestamp(created):%Y-%m-%d %H:%M}" if created else ""
    yield f"## {_one_line(speaker)}{when}"
    if turn.reasoning:
        yield f"<details><summary>Reasoning</summary>\n\n{turn.reasoning.strip()}\n\n</details>"
    yield turn.content.strip() or "*(empty)*"
    if figures := _figures(turn.receipt):
        yield f"*{figures}*"


def _figures(receipt: Mapping[str, object]) -> str:
    known = (("tok_s", "{:.1f} tokens/s"), ("ttft_s", "{:.2f} s to first token"), ("new_tokens", "{:,} tokens"))
    return ", ".join(form.format(value) for key, form in known if isinstance(value := receipt.get(key), int | float))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def to_json(documents: Iterable[Document]) -> str:
    """All versions of the given conversations; `from_json` reads it back as it was."""
    saved = {"format": FORMAT, "version": VERSION, "conversations": [_table_of(document) for document in documents]}
    return json.dumps(saved, indent=1, ensure_ascii=False)


def _table_of(document: Document) -> dict[str, object]:
    conversation = document.conversation
    shown = {turn.id for turn in conversation.path()}
    return {
        "title": conversation.title,
        "system": conversation.system,
        "pinned": document.pinned,
        "options": dict(document.options),
        "turns": [{**vars(turn), "created": document.created.get(turn.id), "shown": turn.id in shown}
                  for turn in conversation.turns()],
    }  # fmt: skip


def read_json(path: Path) -> list[Document]:
    """The conversations in a file, under new ids. Raises NotAnExport."""
    try:
        if path.stat().st_size > MAX_IMPORT_BYTES:
            raise _refusal(path.name, "It is larger than any export.")
        return from_json(path.read_text("utf-8-sig"), path.name)
    except OSError as error:
        raise _refusal(path.name, f"{error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise _refusal(path.name, "It is not text.") from error


def from_json(text: str, source: str = "the file") -> list[Document]:
    """Our own export, or any JSON with lists of messages that have a role and a content. Raises NotAnExport."""
    try:
        saved = _sound(json.loads(text))
        if isinstance(saved, dict) and saved.get("format") == FORMAT:
            if saved["version"] > VERSION:
                raise _refusal(source, "It was written by a newer version of this program.")
            return [_document(table) for table in saved["conversations"]]
        return [_document(table) for table in _foreign(saved)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(source, "It does not hold conversations in a known form.") from error


def _sound(value: Any) -> Any:
    """The value with texts that files can hold: JSON may write half of a surrogate pair as an escape."""
    match value:
        case str():
            return without_halves(value)
        case list():
            return [_sound(item) for item in value]
        case dict():
            return {without_halves(key): _sound(item) for key, item in value.items()}
        case _:
            return value


def _foreign(saved: Any) -> list[dict[str, Any]]:
    """Tables like our own from `{"messages": [...]}`, a list of those, or a bare list of messages."""
    tables = saved if isinstance(saved, list) else [saved]
    if tables and all("role" in table for table in tables):
        tables = [{"messages": tables}]
    result = []
    for table in tables:
        turns = [{"role": said["role"], "content": _text(said["content"])} for said in table["messages"]]
        system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
        rest = [turn for turn in turns if turn["role"] in ("user", "assistant")]
        result.append({"title": table.get("title") or "", "system": system, "turns": _chained(rest)})
    return result


def _chained(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    parents = [None, *range(len(turns) - 1)]
    return [
        {**turn, "id": number, "parent": parent}
        for number, (turn, parent) in enumerate(zip(turns, parents, strict=False))
    ]


def _text(content: Any) -> str:
    # Others store a message as a list of parts; only the text can be kept.
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return str(_typed(content, str))


def _document(table: dict[str, Any]) -> Document:
    conversation = Conversation(title=_typed(table["title"], str), system=_typed(table.get("system", ""), str))
    names: dict[Any, str] = {}
    created: dict[str, float] = {}
    shown: str | None = None
    for saved in table["turns"]:
        turn = conversation.add(_turn(saved, names))
        if isinstance(saved.get("created"), int | float):
            created[turn.id] = float(saved["created"])
        if saved.get("shown"):
            shown = turn.id
    if shown is not None:
        conversation.choose(shown)
    return Document(conversation, bool(table.get("pinned")), dict(table.get("options") or {}), created)


def _turn(saved: dict[str, Any], names: dict[Any, str]) -> Turn:
    role = saved["role"]
    if role not in ROLES or saved["id"] in names:
        raise ValueError(saved)
    parent = None if saved["parent"] is None else names[saved["parent"]]
    name = names[saved["id"]] = uuid4().hex
    return Turn(
        role=role,
        content=_typed(saved["content"], str),
        reasoning=_typed(saved.get("reasoning", ""), str),
        reasoning_s=_typed(saved.get("reasoning_s"), (int, float, type(None))),
        # A reply without an end would count as still being written.
        end=_typed(saved.get("end", ""), str) or ("stop" if role == "assistant" else ""),
        receipt=dict(saved.get("receipt") or {}),
        left_out=_typed(saved.get("left_out", 0), int),
        id=name,
        parent=parent,
    )


def _typed(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


def _refusal(source: str, why: str) -> NotAnExport:
    return NotAnExport(f"{source} cannot be imported.", why, "Choose a JSON file that was exported by a chat program.")
