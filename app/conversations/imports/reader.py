"""Reading conversations from files: encodings, JSON, JSON lines and archives.

Conversations that cannot be read are named and left out.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.conversations.attached import from_table
from app.conversations.conversation import Conversation, Turn, call_from
from app.conversations.imports import programs
from app.conversations.imports.said import NothingSaid
from app.conversations.saved_conversation import SavedConversation
from core.errors import HeteGenError
from core.files import without_halves
from core.sentence import sentence

FORMAT, VERSION = "hetegen-conversations", 1
ROLES = ("system", "user", "assistant", "tool")
MAX_IMPORT_BYTES = 1 << 30
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration, OverflowError, RecursionError)
UNKNOWN = "It does not hold conversations in a known form."


class NotAnExport(HeteGenError):
    """The file holds no conversations in a known form."""


class Imported(list[SavedConversation]):
    """The conversations of a file. `unreadable`: the names of those that could not be read."""

    def __init__(self, conversations: Iterable[SavedConversation] = (), unreadable: Iterable[str] = ()) -> None:
        super().__init__(conversations)
        self.unreadable = tuple(unreadable)


def read_json(path: Path) -> Imported:
    """Read the conversations of a file, under new ids. Raises NotAnExport."""
    try:
        if path.stat().st_size > MAX_IMPORT_BYTES:
            raise refusal(path.name, "It is larger than any export.")
        texts = [_decoded(data) for data in _contents(path)]
    except OSError as error:
        raise refusal(path.name, f"{error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise refusal(path.name, "It is not text.") from error
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise refusal(path.name, UNKNOWN) from error
    found = [from_json(text, path.name) for text in texts]
    return Imported((one for each in found for one in each), (name for each in found for name in each.unreadable))


def from_json(text: str, source: str = "the file") -> Imported:
    """Read our own export or another program's, as JSON or JSON lines. Raises NotAnExport."""
    try:
        saved = _sound(_parsed(text))
        if isinstance(saved, dict) and saved.get("format") == FORMAT:
            if saved["version"] > VERSION:
                raise refusal(source, "It was written by a newer version of this program.")
            return _read_all(saved["conversations"], lambda table: table, source)
        found = _read_all(list(programs.conversations(saved)), programs.read, source)
        if not found:
            raise refusal(source, "It holds no conversations.")
        return found
    except UNREADABLE as error:
        raise refusal(source, UNKNOWN) from error


def _read_all(tables: list[Any], read: Callable[[Any], dict[str, Any]], source: str) -> Imported:
    found, unreadable = [], []
    for number, saved in enumerate(tables, 1):
        try:
            found.append(_conversation(read(saved)))
        except NothingSaid:
            continue
        except UNREADABLE:
            unreadable.append(programs.title_of(saved) or f"#{number}")
    if unreadable and not found:
        raise refusal(source, UNKNOWN)
    return Imported(found, unreadable)


def _contents(path: Path) -> Iterator[bytes]:
    """Yield the file, or the conversations in an archive as sent by ChatGPT and Claude."""
    if not zipfile.is_zipfile(path):
        yield path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if Path(member.filename).name.startswith("conversations")]
        members = [member for member in members if member.filename.endswith((".json", ".jsonl"))]
        if not members or sum(member.file_size for member in members) > MAX_IMPORT_BYTES:
            raise zipfile.BadZipFile(path.name)
        for member in members:
            yield archive.read(member)


def _decoded(data: bytes) -> str:
    return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2:
            raise
    return _of_lines([_line(line) for line in lines])


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _of_lines(values: list[Any]) -> Any:
    """Join lines of messages into one conversation without broken lines; keep broken conversations, to be named."""
    whole = [value for value in values if value is not None]
    if not whole:
        raise ValueError("no line is JSON")
    messages = all(programs.is_message(value) for value in whole)
    return whole if messages else values


def _sound(value: Any) -> Any:
    """Return the value without lone surrogates, which JSON can escape but files cannot hold."""
    match value:
        case str():
            return without_halves(value)
        case list():
            return [_sound(item) for item in value]
        case dict():
            return {without_halves(key): _sound(item) for key, item in value.items()}
        case _:
            return value


def _conversation(table: dict[str, Any]) -> SavedConversation:
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
    return SavedConversation(conversation, bool(table.get("pinned")), dict(table.get("options") or {}), created)


def _turn(saved: dict[str, Any], names: dict[Any, str]) -> Turn:
    role = saved["role"]
    call = saved.get("call")
    if role not in ROLES or saved["id"] in names or (role == "tool") != isinstance(call, dict):
        raise ValueError(saved)
    parent = None if saved["parent"] is None else names[saved["parent"]]
    name = names[saved["id"]] = uuid4().hex
    return Turn(
        role=role,
        content=_typed(saved["content"], str),
        reasoning=_typed(saved.get("reasoning", ""), str),
        reasoning_s=_typed(saved.get("reasoning_s"), (int, float, type(None))),
        # A reply without an end would count as still being written.
        end=_typed(saved.get("end", ""), str) or {"assistant": "stop", "tool": "stopped"}.get(role, ""),
        receipt=dict(saved.get("receipt") or {}),
        left_out=_typed(saved.get("left_out", 0), int),
        id=name,
        parent=parent,
        attached=tuple(map(from_table, saved.get("attached") or ())),
        call=call_from(call) if isinstance(call, dict) else None,
    )


def _typed(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


def refusal(source: str, why: str) -> NotAnExport:
    """Build the error for a file of which nothing can be read."""
    return NotAnExport(
        sentence("{} cannot be imported.", source), why, "Choose a file that was exported by a chat program."
    )
