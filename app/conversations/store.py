"""The conversations on disk: trees of turns, written while they are being said.

Every method may be called from any thread. Changes return at once and are on disk at most 250 ms later (see
`store_file`).
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.conversations.conversation import Conversation, Turn, call_from, call_table
from app.conversations.store_documents import ATTACHED_TO, attach, by_message
from app.conversations.store_file import Report, StoreFile
from core.errors import BadRequest
from core.files import without_halves

TITLE_CHARACTERS = 48
STREAMING, CALL = "streaming", "call"
UNREAD = "unread"
"""Option of a conversation; see `Entry.unread`."""
MARK_START, MARK_END = "\ue000", "\ue001"
"""Marks around the found words in a Hit's snippet: private-use characters, which no text uses with a meaning."""


@dataclass(frozen=True)
class Entry:
    """One line of the list. Times are seconds since 1970; `options`: the conversation's own settings as JSON values."""

    id: str
    title: str
    pinned: bool
    created: float
    updated: float
    options: Mapping[str, Any]

    @property
    def unread(self) -> bool:
        """Whether a reply ended in it that has not been shown."""
        return bool(self.options.get(UNREAD))


@dataclass(frozen=True)
class Hit:
    """One search result. `turn` is None if the title matched."""

    entry: Entry
    turn: str | None
    snippet: str


def ignore(report: Report) -> None:
    """Listener that does nothing."""


class Store:
    """The only reader and writer of a conversation database. `tell` may be called from the store's own thread."""

    def __init__(self, path: Path, tell: Callable[[Report], None] = ignore, *, waits: bool = False) -> None:
        """Open or create the file; a damaged one is set aside and recovered.

        `waits`: if the file cannot be opened, begin in memory and write to the file once it can be; otherwise raise
        StoreFull or StoreUnusable.
        """
        self._file = StoreFile(path, tell, waits=waits)
        if self._file.read("SELECT 1 FROM messages WHERE ending = ? LIMIT 1", STREAMING):
            self._change("UPDATE messages SET ending = 'stopped' WHERE ending = ?", STREAMING)
            tell(Report("interrupted", "A reply was interrupted when the program last ended; its text was kept."))

    # Conversations

    def entries(self) -> list[Entry]:
        """List all conversations that are not deleted, pinned ones first, then the latest."""
        rows = self._file.read(f"SELECT {_ENTRY} FROM conversations c WHERE {_ALIVE} ORDER BY pinned DESC, {_LATEST}")
        return [_entry(row) for row in rows]

    def entry(self, conversation: str) -> Entry:
        """Return one conversation's entry, even if deleted. Raises BadRequest if there is none."""
        rows = self._file.read(f"SELECT {_ENTRY} FROM conversations c WHERE id = ?", conversation)
        if not rows:
            raise BadRequest("There is no such conversation.")
        return _entry(rows[0])

    def put(
        self, conversation: Conversation, options: Mapping[str, Any] | None = None, created: float | None = None
    ) -> None:
        """Insert or update a conversation's title, system prompt and options; `add` stores its turns.

        `options` None keeps the stored ones. `created`: when a new conversation began, if not now.
        """
        now = time.time() if created is None else created
        text = json.dumps(dict(options)) if options is not None else None
        values = (conversation.id, conversation.title, now, now, text or "{}", conversation.system, text)
        self._change(
            "INSERT INTO conversations(id, title, pinned, created, updated, options, system) VALUES(?,?,0,?,?,?,?) "
            "ON CONFLICT(id) DO UPDATE SET title = excluded.title, system = excluded.system, "
            "options = coalesce(?, options)",
            *values,
        )

    def set_options(self, conversation: str, options: Mapping[str, Any]) -> None:
        """Replace a conversation's options."""
        self._change("UPDATE conversations SET options = ? WHERE id = ?", json.dumps(dict(options)), conversation)

    def load(self, conversation: str) -> Conversation:
        """Load the whole tree with the branch shown last. Raises BadRequest if there is none."""
        found = self._file.read("SELECT title, system, chosen FROM conversations WHERE id = ?", conversation)
        if not found:
            raise BadRequest("There is no such conversation.")
        title, system, root = found[0]
        rows = self._file.read(_TURNS_OF, conversation)
        attached = by_message(self._file.read(ATTACHED_TO, conversation))
        loaded = Conversation(conversation, title, system)
        siblings: dict[str | None, list[str]] = {}
        for turn in _with_parents([_turn(row[1:]) for row in rows]):
            turn.attached = attached.get(turn.id, ())
            loaded.add(turn)
            siblings.setdefault(turn.parent, []).append(turn.id)
        for parent, chosen in ((None, root), *((row[1], row[0]) for row in rows)):
            versions = siblings.get(parent, [])
            if chosen in versions:
                loaded.switch(versions[-1], versions.index(chosen) + 1 - len(versions))
        return loaded

    def rename(self, conversation: str, title: str) -> None:
        """Change a conversation's title."""
        self._change("UPDATE conversations SET title = ? WHERE id = ?", title, conversation)

    def pin(self, conversation: str, pinned: bool) -> None:
        """Pin a conversation to the top of the list, or unpin it."""
        self._change("UPDATE conversations SET pinned = ? WHERE id = ?", int(pinned), conversation)

    def delete(self, conversation: str) -> None:
        """Mark a conversation as deleted; `undelete` restores it until it is purged."""
        self._change("UPDATE conversations SET deleted_at = ? WHERE id = ?", time.time(), conversation)

    def undelete(self, conversation: str) -> None:
        """Restore a deleted conversation."""
        self._change("UPDATE conversations SET deleted_at = NULL WHERE id = ?", conversation)

    def purge(self, older_than_s: float = 0.0) -> None:
        """Remove for good, and overwrite on disk, what was deleted at least `older_than_s` ago.

        0 removes all of it, even if the clock was set back since.
        """
        limit = time.time() - older_than_s if older_than_s else math.inf
        self._file.change(lambda db: _purge(db, limit))

    # Turns

    def add(self, conversation: str, turn: Turn, created: float | None = None) -> None:
        """Insert a turn under its parent and let the shown branch run through it.

        Inserts the conversation if it is not stored yet. A conversation without a title takes it from its first
        question.
        """
        now = time.time() if created is None else created
        row = (turn.id, conversation, turn.parent, turn.role, _ending(turn), now, *_growing(turn))
        title = title_of(turn) if turn.role == "user" else ""
        parent, name, attached = turn.parent, turn.id, turn.attached

        def change(db: sqlite3.Connection) -> None:
            db.execute(_NEW_CONVERSATION, (conversation, now, now))
            db.execute(_NEW_TURN, row)
            attach(db, name, attached)
            _choose(db, conversation, parent, name)
            db.execute("UPDATE conversations SET updated = max(updated, ?) WHERE id = ?", (now, conversation))
            db.execute("UPDATE conversations SET title = ? WHERE id = ? AND title = ''", (title, conversation))

        self._file.change(change)

    def keep(self, turn: Turn) -> None:
        """Store a turn's current text and figures. Cheap enough to be called for every piece of a reply."""
        row = (_ending(turn), *_growing(turn), turn.id)
        self._file.change_latest(turn.id, lambda db: _update(db, row))

    def remove(self, turn: str) -> None:
        """Delete a turn that no other one follows."""
        self._change("DELETE FROM messages WHERE id = ?", turn)

    def choose(self, turn: str) -> None:
        """Let the shown branch run through this turn, which may be in a hidden version."""

        def change(db: sqlite3.Connection) -> None:
            place: str | None = turn
            while place is not None:
                found = db.execute("SELECT conversation, parent FROM messages WHERE id = ?", (place,)).fetchone()
                conversation, parent = found or (None, None)
                _choose(db, conversation, parent, place)
                place = parent

        self._file.change(change)

    def created(self, conversation: str) -> dict[str, float]:
        """Return when each turn was stored: seconds since 1970 by turn id."""
        return dict(self._file.read("SELECT id, created FROM messages WHERE conversation = ?", conversation))

    # Search

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Return one hit per conversation whose title or turns contain every word of `text` as a prefix."""
        best: dict[str, Hit] = {}
        for row in self._found(without_halves(text).replace("\0", " ").strip(), limit):
            best.setdefault(row[0], Hit(_entry(row[:6]), row[6], " ".join(row[7].split())))
        return list(best.values())[:limit]

    def _found(self, text: str, limit: int) -> list[Any]:
        if not text:
            return []
        words = re.findall(r"\w+", text)
        # Chinese, Japanese, Thai and others write without spaces: a word index finds nothing inside their sentences.
        if not words or any(ord(character) >= 0x0E00 for character in text):
            pattern = "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"
            titles = self._file.read(_LIKE_TITLES, pattern, limit)
            turns = self._file.read(_LIKE_TURNS, text, pattern, limit * 4)
            mark = re.compile(re.escape(text), re.IGNORECASE)
            return [(*row[:-1], mark.sub(_marked, row[-1])) for row in titles + turns]
        query = " ".join(f'"{word}"*' for word in words)
        return self._file.read(_WORDS_TITLES, query, limit) + self._file.read(_WORDS_TURNS, query, limit * 4)

    # The file

    @property
    def unsaved(self) -> bool:
        """Whether the disk is full and changes wait in memory."""
        return self._file.unsaved

    @property
    def late(self) -> bool:
        """Whether the file could not be opened yet; `entries` then lacks its conversations."""
        return self._file.late

    def retry(self) -> None:
        """Try now to write what waits in memory."""
        self._file.retry()

    def flush(self) -> None:
        """Wait until all changes are written, or kept in memory if the disk is full."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file; the object cannot be used afterwards."""
        self._file.close()

    def _change(self, sql: str, *values: object) -> None:
        sound = tuple(without_halves(value) if isinstance(value, str) else value for value in values)
        self._file.change(lambda db: _execute(db, sql, sound))


def title_of(question: Turn) -> str:
    """Derive a title from a first question: from its text, or else from the name of its first file."""
    return title_from(without_halves(question.content)) or next((each.name for each in question.attached), "")


def title_from(question: str) -> str:
    """Derive a title from a first question: its first line with words, without Markdown signs."""
    plain = re.sub(r"[`*#>~]+", "", question)
    line = next((" ".join(line.split()) for line in plain.splitlines() if re.search(r"\w", line)), "")
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS]
    whole_words = cut.rsplit(" ", 1)[0]
    return (whole_words if len(whole_words) > TITLE_CHARACTERS // 2 else cut).rstrip(" ,.;:-") + "…"


_ENTRY = "c.id, c.title, c.pinned, c.created, c.updated, c.options"
_ALIVE = "c.deleted_at IS NULL"
_LATEST = "c.updated DESC, c.number DESC"
_TURN = "id, parent, role, ending, reasoning_s, left_out, receipt, reasoning, content"
_TURNS_OF = f"SELECT chosen, {_TURN} FROM messages WHERE conversation = ? ORDER BY number"
_NEW_CONVERSATION = (
    "INSERT OR IGNORE INTO conversations(id, title, pinned, created, updated, options, system) "
    "VALUES(?,'',0,?,?,'{}','')"
)
_NEW_TURN = (
    "INSERT OR IGNORE INTO messages(id, conversation, parent, role, ending, created, reasoning_s, left_out, receipt, "
    "reasoning, content) VALUES(?,?,?,?,?,?,?,?,?,?,?)"
)
_WORDS_TITLES = (
    f"SELECT {_ENTRY}, NULL, highlight(title_words, 0, '{MARK_START}', '{MARK_END}') FROM title_words "
    f"JOIN conversations c ON c.number = title_words.rowid WHERE title_words MATCH ? AND {_ALIVE} "
    f"ORDER BY {_LATEST} LIMIT ?"
)
_WORDS_TURNS = (
    f"SELECT {_ENTRY}, m.id, snippet(message_words, 0, '{MARK_START}', '{MARK_END}', '…', 12) FROM message_words "
    "JOIN messages m ON m.number = message_words.rowid JOIN conversations c ON c.id = m.conversation "
    f"WHERE message_words MATCH ? AND {_ALIVE} ORDER BY rank LIMIT ?"
)
_LIKE_TITLES = (
    f"SELECT {_ENTRY}, NULL, c.title FROM conversations c WHERE c.title LIKE ? ESCAPE '\\' AND {_ALIVE} "
    f"ORDER BY {_LATEST} LIMIT ?"
)
_LIKE_TURNS = (
    f"SELECT {_ENTRY}, m.id, substr(m.content, max(1, instr(m.content, ?) - 24), 80) FROM messages m "
    f"JOIN conversations c ON c.id = m.conversation WHERE m.content LIKE ? ESCAPE '\\' AND {_ALIVE} "
    f"ORDER BY {_LATEST} LIMIT ?"
)


def _marked(found: re.Match[str]) -> str:
    return f"{MARK_START}{found.group()}{MARK_END}"


def _execute(db: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> None:
    db.execute(sql, values)


def _purge(db: sqlite3.Connection, limit: float) -> None:
    if not db.execute("DELETE FROM conversations WHERE deleted_at <= ?", (limit,)).rowcount:
        return
    # A full-text index only marks deleted words until its segments are merged.
    for index in ("message_words", "title_words"):
        db.execute(f"INSERT INTO {index}({index}) VALUES('optimize')")


def _choose(db: sqlite3.Connection, conversation: str | None, parent: str | None, turn: str) -> None:
    if parent is None:
        db.execute("UPDATE conversations SET chosen = ? WHERE id = ?", (turn, conversation))
    else:
        db.execute("UPDATE messages SET chosen = ? WHERE id = ?", (turn, parent))


def _update(db: sqlite3.Connection, row: tuple[object, ...]) -> None:
    db.execute(
        "UPDATE messages SET ending = ?, reasoning_s = ?, left_out = ?, receipt = ?, reasoning = ?, content = ? "
        "WHERE id = ?",
        row,
    )


def _ending(turn: Turn) -> str:
    if turn.open:
        return STREAMING
    return turn.end or (STREAMING if turn.role == "assistant" else "")


def _growing(turn: Turn) -> tuple[object, ...]:
    return (
        turn.reasoning_s,
        turn.left_out,
        # A tool call has no column of its own: few messages are calls, and older files lack the column.
        json.dumps(turn.receipt if turn.call is None else {CALL: call_table(turn.call)}),
        without_halves(turn.reasoning),
        without_halves(turn.content),
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    name, title, pinned, created, updated, options = row
    return Entry(name, title, bool(pinned), created, updated, json.loads(options))


def _with_parents(turns: list[Turn]) -> Iterator[Turn]:
    """Yield the turns, parents before children. A turn whose parent was lost follows the turn before it."""
    known: set[str] = set()
    last: str | None = None
    for turn in turns:
        if turn.parent is not None and turn.parent not in known:
            turn.parent = last
        known.add(turn.id)
        last = turn.id
        yield turn


def _turn(row: Sequence[Any]) -> Turn:
    name, parent, role, ending, reasoning_s, left_out, receipt, reasoning, content = row
    end = "" if ending == STREAMING else ending
    figures = json.loads(receipt)
    call = call_from(figures.pop(CALL)) if CALL in figures else None
    return Turn(role, content, reasoning, reasoning_s, end, figures, left_out, name, parent, call=call)
