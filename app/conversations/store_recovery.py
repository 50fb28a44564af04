"""Recovers the readable rows of a damaged conversation database, page by page, without trusting its structure.

SQLite itself gives up where a tree is broken, but each leaf page of a table can be read alone
(sqlite.org/fileformat2.html, sections 1.6, 2.1 and 2.3). Rows are recognised by their number of columns.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.conversations.store_schema import open_database, transaction, typed, unusable
from core.files import move_over

PAGE_BYTES = 4096
FILE_HEADER_BYTES = 100
TABLE_LEAF = 0x0D
LEAF_HEADER_BYTES = 8
INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
CONVERSATION_COLUMNS = 10
MESSAGE_COLUMNS = 13
DOCUMENT_COLUMNS = 4
ATTACHMENT_COLUMNS = 5
DIGEST_LENGTH = 64
MAX_PAYLOAD_BYTES = 1 << 30

Value = int | float | str | bytes | None
Row = tuple[Value, ...]


@dataclass(frozen=True)
class Salvage:
    """The rows that could be read, with the columns in table order."""

    conversations: tuple[Row, ...]
    messages: tuple[Row, ...]
    documents: tuple[Row, ...] = ()
    attachments: tuple[Row, ...] = ()


def recover(path: Path) -> tuple[Path, int]:
    """Move the readable rows of a damaged file to a new file of the same name.

    Returns the damaged file's new path and the number of messages recovered. Raises StoreFull, StoreUnusable; the
    damaged file then stays in place.
    """
    fresh, aside = _recovered_name(path), _free_name(path)
    with _refusals(path):
        rows = salvage(path)
        _write(fresh, rows)  # complete before the damaged file is renamed
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        move_over(path, aside)
        move_over(fresh, path)
    return aside, len(rows.messages)


def finish_recovery(path: Path) -> None:
    """Finish a recovery that was interrupted between the two renames. Raises StoreUnusable."""
    fresh = _recovered_name(path)
    if fresh.exists() and not path.exists():
        with _refusals(path):
            move_over(fresh, path)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Report an OSError, such as Windows raises for files that other programs have open, as StoreUnusable."""
    try:
        yield
    except OSError as error:
        raise unusable(error, path) from error


def _recovered_name(path: Path) -> Path:
    return path.with_name(f"{path.stem}.recovered{path.suffix}")


def _free_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = [path.with_name(f"{path.stem}.damaged-{stamp}{more}{path.suffix}") for more in ("", *"abcdefgh")]
    return next((name for name in names if not name.exists()), names[0])


def _write(path: Path, rows: Salvage) -> None:
    """Create a database with these rows and close it. Raises StoreFull, StoreUnusable."""
    path.unlink(missing_ok=True)
    with closing(open_database(path)) as database:
        try:
            with transaction(database):
                restore(database, rows)
        except sqlite3.Error as error:
            raise typed(error, path) from error


def salvage(path: Path) -> Salvage:
    """Read the rows of a file and its write-ahead log. Raises OSError if the file cannot be read at all."""
    _merge_log(path)
    pages = _Pages(path.read_bytes())
    kinds = (_is_conversation, _is_message, _is_document, _is_attachment)
    found: tuple[dict[int, Row], ...] = tuple({} for _ in kinds)
    for row in pages.rows():
        kind = next((place for place, is_one in enumerate(kinds) if is_one(row)), None)
        if kind is not None:
            found[kind].setdefault(_key(row), row)
    return Salvage(*map(_in_order, found))


def _in_order(rows: dict[int, Row]) -> tuple[Row, ...]:
    return tuple(rows[number] for number in sorted(rows))


def _merge_log(path: Path) -> None:
    # If SQLite cannot apply the log any more, its changes are lost; the pages of the main file are not.
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _key(row: Row) -> int:
    assert isinstance(row[0], int)
    return row[0]


def _is_conversation(row: Row) -> bool:
    if len(row) != CONVERSATION_COLUMNS:
        return False
    _, name, title, pinned, created, updated, _, options, system, _ = row
    return pinned in (0, 1) and _is_time(created) and _is_time(updated) and _are_texts(name, title, options, system)


def _is_message(row: Row) -> bool:
    if len(row) != MESSAGE_COLUMNS:
        return False
    _, name, conversation, _, _, role, ending, created, _, _, receipt, reasoning, content = row
    texts = _are_texts(name, conversation, ending, receipt, reasoning, content)
    return texts and _is_time(created) and role in ("system", "user", "assistant", "tool")


def _is_document(row: Row) -> bool:
    """Accept only documents with all pages: a truncated text would count as another document."""
    return len(row) == DOCUMENT_COLUMNS and _is_digest(row[1]) and _is_list_of_texts(row[2]) and _is_json(row[3])


def _is_attachment(row: Row) -> bool:
    if len(row) != ATTACHMENT_COLUMNS:
        return False
    _, message, place, name, digest = row
    return _are_texts(message, name) and isinstance(place, int) and _is_digest(digest)


def _is_digest(value: Value) -> bool:
    return isinstance(value, str) and len(value) == DIGEST_LENGTH


def _is_list_of_texts(text: Value) -> bool:
    pages = json.loads(str(text)) if _is_json(text) else None
    return isinstance(pages, list) and all(isinstance(page, str) for page in pages)


def _is_json(text: Value) -> bool:
    try:
        json.loads(str(text))
    except ValueError:
        return False
    return True


def _are_texts(*values: Value) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_time(value: Value) -> bool:
    return isinstance(value, int | float) and value >= 0


def restore(database: sqlite3.Connection, rows: Salvage) -> None:
    """Insert salvaged rows into an empty database. A message whose parent was lost follows the one before it."""
    known: set[Value] = set()
    for row in rows.conversations:
        database.execute("INSERT OR IGNORE INTO conversations VALUES(?,?,?,?,?,?,?,?,?,?)", (*row[:7], *_options(row)))
        known.add(row[1])
    last: dict[Value, Value] = {}
    saved: set[Value] = set()
    for number, name, conversation, parent, *rest in rows.messages:
        if conversation not in known:
            row = (None, conversation, "Recovered conversation", 0, rest[3], rest[3], None, "{}", "", None)
            database.execute("INSERT INTO conversations VALUES(?,?,?,?,?,?,?,?,?,?)", row)
            known.add(conversation)
        if parent is not None and parent not in saved:
            parent = last.get(conversation)
        rest[6] = rest[6] if _is_table(rest[6]) else "{}"
        message = (number, name, conversation, parent, *rest)
        database.execute("INSERT OR IGNORE INTO messages VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)", message)
        last[conversation] = name
        saved.add(name)
    _restore_documents(database, rows, saved)


def _restore_documents(database: sqlite3.Connection, rows: Salvage, messages: set[Value]) -> None:
    """Insert the documents of recovered messages; documents of lost messages are dropped."""
    digests = {row[1] for row in rows.documents}
    attachments = [row for row in rows.attachments if row[1] in messages and row[4] in digests]
    used = {row[4] for row in attachments}
    documents = [row for row in rows.documents if row[1] in used]
    database.executemany("INSERT OR IGNORE INTO documents VALUES(?,?,?,?)", documents)
    database.executemany("INSERT OR IGNORE INTO attachments VALUES(?,?,?,?,?)", attachments)


def _options(row: Row) -> tuple[Value, ...]:
    return (row[7] if _is_table(row[7]) else "{}", *row[8:])


def _is_table(text: Value) -> bool:
    try:
        return isinstance(json.loads(str(text)), dict)
    except ValueError:
        return False


class _Pages:
    """The file as a sequence of equal pages, numbered from 1."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._size = _page_size(data)

    def rows(self) -> Iterator[Row]:
        for number in range(1, len(self._data) // self._size + 1):
            page = self._page(number)
            start = FILE_HEADER_BYTES if number == 1 else 0
            if page[start] == TABLE_LEAF:
                yield from self._leaf_rows(page, start)

    def _page(self, number: int) -> bytes:
        return self._data[(number - 1) * self._size : number * self._size]

    def _leaf_rows(self, page: bytes, start: int) -> Iterator[Row]:
        cells = int.from_bytes(page[start + 3 : start + 5], "big")
        for index in range(cells):
            place = start + LEAF_HEADER_BYTES + 2 * index
            offset = int.from_bytes(page[place : place + 2], "big")
            # A cell of a torn page may contain anything.
            with suppress(IndexError, ValueError, KeyError):
                yield self._row(page, offset)

    def _row(self, page: bytes, offset: int) -> Row:
        length, offset = _varint(page, offset)
        rowid, offset = _varint(page, offset)
        if not 0 < length < MAX_PAYLOAD_BYTES or rowid < 1:
            raise ValueError(length)
        values = _record(self._payload(page, offset, length))
        return (rowid, *values[1:])

    def _payload(self, page: bytes, offset: int, length: int) -> bytes:
        """Return the bytes of one row, following its overflow pages as far as the chain is intact."""
        local = _local_bytes(length, self._size)
        parts = [page[offset : offset + local]]
        missing = length - local
        following = int.from_bytes(page[offset + local : offset + local + 4], "big") if missing else 0
        seen: set[int] = set()
        while missing and 0 < following <= len(self._data) // self._size and following not in seen:
            seen.add(following)
            overflow = self._page(following)
            parts.append(overflow[4 : 4 + missing])
            missing -= len(parts[-1])
            following = int.from_bytes(overflow[:4], "big")
        return b"".join(parts)


def _page_size(data: bytes) -> int:
    stated = int.from_bytes(data[16:18], "big")
    size = 65536 if stated == 1 else stated
    sound = data[:16] == b"SQLite format 3\0" and size >= 512 and size & (size - 1) == 0
    return size if sound else PAGE_BYTES


def _local_bytes(length: int, page_size: int) -> int:
    """Return how many bytes of a `length`-byte row lie on its leaf page (no bytes are reserved at page ends)."""
    most = page_size - 35
    if length <= most:
        return length
    least = (page_size - 12) * 32 // 255 - 23
    local = least + (length - least) % (page_size - 4)
    return local if local <= most else least


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[offset + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + index + 1
    return value << 8 | data[offset + 8], offset + 9


def _record(payload: bytes) -> list[Value]:
    header_end, place = _varint(payload, 0)
    types = []
    while place < header_end:
        kind, place = _varint(payload, place)
        types.append(kind)
    values, place = [], header_end
    for kind in types:
        value, place = _value(payload, place, kind)
        values.append(value)
    return values


def _value(payload: bytes, place: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, place
    if kind in (8, 9):
        return kind - 8, place
    if kind == 7:
        return _float(payload[place : place + 8]), place + 8
    if kind < 12:
        size = INTEGER_BYTES[kind]
        return int.from_bytes(payload[place : place + size], "big", signed=True), place + size
    size = (kind - 12) // 2
    # A broken chain of overflow pages yields a shorter text, which is better than none.
    chunk = payload[place : place + size]
    return chunk.decode("utf-8", "replace") if kind % 2 else chunk, place + size


def _float(data: bytes) -> float:
    value: float = struct.unpack(">d", data)[0] if len(data) == 8 else 0.0
    return value
