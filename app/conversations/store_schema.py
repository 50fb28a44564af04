"""The tables of the conversation database, their versions, and how a file is opened and brought up to date.

Knows SQL and nothing of chats in use. `PRAGMA user_version` is the number of migrations that have run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from core.errors import DiskFull, HeteGenError
from core.sentence import sentence

# chosen stands before the long columns: SQLite reads a row from its beginning, through its overflow pages.
TABLES = """
CREATE TABLE conversations(
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    pinned INTEGER NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    deleted_at REAL,
    options TEXT NOT NULL,
    system TEXT NOT NULL,
    chosen TEXT
);
CREATE TABLE messages(
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
    parent TEXT,
    chosen TEXT,
    role TEXT NOT NULL,
    ending TEXT NOT NULL,
    created REAL NOT NULL,
    reasoning_s REAL,
    left_out INTEGER NOT NULL,
    receipt TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    content TEXT NOT NULL
);
CREATE INDEX messages_of ON messages(conversation);
CREATE INDEX messages_running ON messages(ending) WHERE ending = 'streaming';
"""

# A reply is indexed once, when it ends: indexing a growing text again and again would cost its square.
SEARCH = """
UPDATE messages SET ending = 'stopped' WHERE ending = 'streaming';
CREATE VIRTUAL TABLE message_words USING fts5(
    content, content='messages', content_rowid='number', tokenize="unicode61 remove_diacritics 2");
CREATE VIRTUAL TABLE title_words USING fts5(
    title, content='conversations', content_rowid='number', tokenize="unicode61 remove_diacritics 2");
INSERT INTO message_words(message_words) VALUES('rebuild');
INSERT INTO title_words(title_words) VALUES('rebuild');
CREATE TRIGGER message_added AFTER INSERT ON messages WHEN new.ending <> 'streaming' BEGIN
    INSERT INTO message_words(rowid, content) VALUES(new.number, new.content);
END;
CREATE TRIGGER message_changed AFTER UPDATE OF ending, content ON messages
WHEN (old.ending = 'streaming') <> (new.ending = 'streaming')
    OR new.ending <> 'streaming' AND old.content <> new.content
BEGIN
    INSERT INTO message_words(message_words, rowid, content)
        SELECT 'delete', old.number, old.content WHERE old.ending <> 'streaming';
    INSERT INTO message_words(rowid, content)
        SELECT new.number, new.content WHERE new.ending <> 'streaming';
END;
CREATE TRIGGER message_removed AFTER DELETE ON messages WHEN old.ending <> 'streaming' BEGIN
    INSERT INTO message_words(message_words, rowid, content) VALUES('delete', old.number, old.content);
END;
CREATE TRIGGER title_added AFTER INSERT ON conversations BEGIN
    INSERT INTO title_words(rowid, title) VALUES(new.number, new.title);
END;
CREATE TRIGGER title_changed AFTER UPDATE OF title ON conversations BEGIN
    INSERT INTO title_words(title_words, rowid, title) VALUES('delete', old.number, old.title);
    INSERT INTO title_words(rowid, title) VALUES(new.number, new.title);
END;
CREATE TRIGGER title_removed AFTER DELETE ON conversations BEGIN
    INSERT INTO title_words(title_words, rowid, title) VALUES('delete', old.number, old.title);
END;
"""

# Texts are told apart by what they say: a file attached twice is stored once, and goes with its last message.
DOCUMENTS = """
CREATE TABLE documents(
    number INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    pages TEXT NOT NULL,
    note TEXT NOT NULL
);
CREATE TABLE attachments(
    number INTEGER PRIMARY KEY,
    message TEXT NOT NULL REFERENCES messages(id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES documents(digest),
    UNIQUE(message, place)
);
CREATE INDEX attachments_of ON attachments(digest);
CREATE TRIGGER attachment_removed AFTER DELETE ON attachments
WHEN NOT EXISTS (SELECT 1 FROM attachments WHERE digest = old.digest) BEGIN
    DELETE FROM documents WHERE digest = old.digest;
END;
"""

MIGRATIONS = (TABLES, SEARCH, DOCUMENTS)
BUSY_S = 2.0
FULL_CODES = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
)
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PASSING_CODES = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
)


class StoreFull(DiskFull):
    """The disk has no room for the conversations."""


class StoreUnusable(HeteGenError):
    """The conversations cannot be opened: in use elsewhere, forbidden, or made by a newer version."""


class StoreDamaged(HeteGenError):
    """The file is not a sound database (any more)."""


def is_full(error: sqlite3.Error) -> bool:
    """Did the disk, a quota or a size limit refuse the bytes?"""
    return getattr(error, "sqlite_errorcode", None) in FULL_CODES


def is_damage(error: sqlite3.Error) -> bool:
    """Does the error mean that the file's contents are wrong? (Extended codes keep the plain one in the low byte.)"""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in DAMAGE_CODES


def may_pass(error: sqlite3.Error) -> bool:
    """Did the disk refuse for a reason that may be gone in a moment, whatever was written?"""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in PASSING_CODES


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of the block or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def open_memory() -> sqlite3.Connection:
    """An empty database at the newest schema, of this process alone."""
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA foreign_keys = ON")
    _migrate(database, Path())
    return database


def open_database(path: Path, patience_s: float = BUSY_S) -> sqlite3.Connection:
    """A checked connection at the newest schema; `patience_s`: how long to wait for one who uses it. Raises StoreFull,
    StoreUnusable, StoreDamaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=patience_s, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnusable(
            "The conversations cannot be opened.",
            f"{error}.",
            sentence("Check that {} can be written to.", path.parent),
        ) from error
    try:
        _configure(database)
        _check(database)
        _migrate(database, path)
    except sqlite3.Error as error:
        database.close()
        raise typed(error, path) from error
    except HeteGenError:
        database.close()
        raise
    return database


def _configure(database: sqlite3.Connection) -> None:
    # Exclusive: one writer for sure, no shared-memory file, and WAL works on network homes too.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    # FULL: what was written survives a power cut as well. Deleted text is overwritten with zeros.
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA secure_delete = ON")
    database.execute("PRAGMA foreign_keys = ON")


def _check(database: sqlite3.Connection) -> None:
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreDamaged("The conversations are damaged.", f"{found}.")


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreUnusable(
            "The conversations were written by a newer version of this program.",
            sentence("Their format is {}, and this version knows {}.", version, len(MIGRATIONS)),
            "Install the newest version.",
        )
    if 0 < version < len(MIGRATIONS):
        back_up(database, path.with_name(f"{path.stem}.format{version}{path.suffix}"))
    for number in range(version, len(MIGRATIONS)):
        script = f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        try:
            database.executescript(script)
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")


def back_up(database: sqlite3.Connection, target: Path) -> None:
    """A whole copy of the database at `target`; a copy that is there already is replaced only by a complete one."""
    unfinished = target.with_name(target.name + ".part")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished)) as copy:
        database.backup(copy)
    unfinished.replace(target)


def typed(error: sqlite3.Error, path: Path) -> HeteGenError:
    """The failure that a user hears of where the database at `path` could not be opened."""
    if is_full(error):
        return StoreFull(
            "The conversations cannot be opened.", "The disk is full.", "Free some space, then start again."
        )
    if is_damage(error):
        return StoreDamaged("The conversations are damaged.", f"{error}.")
    if "locked" in str(error):
        return StoreUnusable(
            "The conversations are in use.", "Another window of this program is open.", "Use or close that window."
        )
    return StoreUnusable(
        "The conversations cannot be opened.", f"{error}.", sentence("Check that {} can be written to.", path.parent)
    )
