"""Attached documents in the database. Each text is stored once, whichever turns and conversations use it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from core.documents.document import Document
from core.files import without_halves
from core.sentence import pack, unpack

ATTACHED_TO = (
    "SELECT a.message, a.name, d.pages, d.note FROM attachments a JOIN documents d ON d.digest = a.digest "
    "JOIN messages m ON m.id = a.message WHERE m.conversation = ? ORDER BY a.message, a.place"
)


def attach(database: sqlite3.Connection, message: str, documents: Sequence[Document]) -> None:
    """Store the documents of a message, which must be stored already."""
    for place, document in enumerate(documents):
        pages, note = json.dumps(list(document.pages)), json.dumps(pack(document.note))
        digest = sha256(f"{pages}\n{note}".encode()).hexdigest()
        database.execute("INSERT OR IGNORE INTO documents(digest, pages, note) VALUES(?,?,?)", (digest, pages, note))
        database.execute(
            "INSERT OR IGNORE INTO attachments(message, place, name, digest) "
            "SELECT id, ?, ?, ? FROM messages WHERE id = ?",
            (place, without_halves(document.name), digest, message),
        )


def by_message(rows: Iterable[Sequence[Any]]) -> dict[str, tuple[Document, ...]]:
    """Group the rows of `ATTACHED_TO` by message."""
    found: dict[str, tuple[Document, ...]] = {}
    for message, name, pages, note in rows:
        document = Document(name, tuple(json.loads(pages)), unpack(json.loads(note)))
        found[message] = (*found.get(message, ()), document)
    return found
