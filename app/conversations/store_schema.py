"""Tables and migrations of the conversation database, and opening a file.

Knows SQL and no conversations in use. `PRAGMA user_version` counts the migrations that have run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from core.errors import DiskFull, HeteGenError
from core.files import move_over
from core.sentence import sentence

# `chosen` stands before the long columns: SQLite reads a row from its start, through its overflow pages.
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

# Index a reply once, when it ends: indexing a growing text again and again would take quadratic time.
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

# Texts are identified by a digest: a file attached twice is stored once, and is deleted with its last message.
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
NO_TEXT = "Could not decode to UTF-8"
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
    """The conversations cannot be opened: in use elsewhere, not permitted, or written by a newer version."""


class StoreDamaged(HeteGenError):
    """The file is not a valid database (any more)."""


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk, a quota or a size limit refused the bytes."""
    return getattr(error, "sqlite_errorcode", None) in FULL_CODES


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file's contents are damaged. Extended error codes keep the primary code in their low byte; for text
    that is no UTF-8, which Python finds, there is none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in DAMAGE_CODES or str(error).startswith(NO_TEXT)


def may_pass(error: sqlite3.Error) -> bool:
    """Whether the disk refused for a reason that may soon be gone, whatever was written."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in PASSING_CODES


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run the block in a transaction, rolled back on an exception."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def open_memory() -> sqlite3.Connection:
    """Open an empty in-memory database with the newest schema."""
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA foreign_keys = ON")
    _migrate(database, Path())
    return database


def open_database(path: Path, patience_s: float = BUSY_S) -> sqlite3.Connection:
    """Open and check a database, and bring it to the newest schema.

    `patience_s`: how long to wait for another user of the file. Raises StoreFull, StoreUnusable, StoreDamaged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=patience_s, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise unusable(error, path) from error
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
    # Exclusive: a single writer, no shared-memory file, and WAL works on network homes too.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    # FULL: writes survive a power cut. secure_delete: deleted text is overwritten with zeros.
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
    """Copy the database to `target`. An existing copy is replaced only by a complete one."""
    unfinished = target.with_name(target.name + ".part")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished)) as copy:
        database.backup(copy)
    move_over(unfinished, target)


def typed(error: sqlite3.Error, path: Path) -> HeteGenError:
    """Return the error shown to the user if the database at `path` could not be opened."""
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
    return unusable(error, path)


def unusable(error: Exception, path: Path) -> StoreUnusable:
    """Return the error for a system that refuses access to the files of the database at `path`."""
    return StoreUnusable(
        "The conversations cannot be opened.", f"{error}.", sentence("Check that {} can be written to.", path.parent)
    )
