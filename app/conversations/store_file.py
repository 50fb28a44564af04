"""The database file: one connection, changes in order, and recovery from disk errors.

Changes are queued, and this object's own thread writes them together at most FLUSH_S later, so that callers never wait
for the disk. While the disk refuses them, because it is full or fails, changes go on in memory and are replayed once it
accepts them. If the file is damaged, its readable rows move to a new file. A change that is wrong in itself is left
out. Listeners receive a `Report` of each of these.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.conversations.store_recovery import finish_recovery, recover
from app.conversations.store_schema import (
    BUSY_S,
    StoreDamaged,
    is_damage,
    is_full,
    may_pass,
    open_database,
    open_memory,
    transaction,
)
from core.errors import HeteGenError
from core.sentence import sentence

log = logging.getLogger(__name__)

FLUSH_S = 0.15
RETRY_S = 2.0

Change = Callable[[sqlite3.Connection], None]
"""Runs inside a transaction, and may run again on another connection: it must depend on nothing else."""


@dataclass(frozen=True)
class Report:
    """News of the file for the user, in the three sentences of an error."""

    kind: Literal["full", "held", "left_out", "saved", "recovered", "interrupted", "not_kept"]
    what: str
    why: str = ""
    next_step: str = ""


FULL = Report(
    "full",
    "The conversation is not being saved.",
    "The disk is full.",
    "Free some space and it is saved by itself; until then it is kept in memory.",
)
HELD = Report(
    "held",
    "The conversation is not being saved.",
    "The disk does not take it at the moment.",
    "It is tried again by itself; until then it is kept in memory.",
)
LEFT_OUT = Report(
    "left_out",
    "A part of the conversation could not be saved.",
    "This is a defect of the program; the log has the details.",
    "All else is saved.",
)
SAVED = Report("saved", "The conversation is saved again.")


@dataclass
class _Changes:
    """Queued changes: ordered ones, then those of which only the latest of its key counts."""

    ordered: list[Change] = field(default_factory=list)
    latest: dict[str, Change] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ordered or self.latest)

    def __iter__(self) -> Iterator[Change]:
        yield from self.ordered
        yield from self.latest.values()

    def take(self, other: _Changes) -> None:
        self.ordered += other.ordered
        self.latest |= other.latest

    def without(self, wrong: set[Change]) -> _Changes:
        ordered = [change for change in self.ordered if change not in wrong]
        return _Changes(ordered, {key: change for key, change in self.latest.items() if change not in wrong})


class StoreFile:
    """Thread-safe access to the database file. `tell` is called from the thread that found the news, often its own."""

    def __init__(self, path: Path, tell: Callable[[Report], None], *, waits: bool = False) -> None:
        """Open or create the file; a damaged one is set aside and recovered.

        `waits`: if the file cannot be opened, begin in memory and write to the file once it can be; otherwise raise
        StoreFull or StoreUnusable.
        """
        self._path = path
        self._tell = tell
        self._files = threading.RLock()  # held while the connections are used
        self._queue = threading.Condition()  # held only to add or take changes
        self._queued = _Changes()
        self._waiting = _Changes()  # kept in the memory database until the disk accepts them
        self._memory: sqlite3.Connection | None = None
        self._held = False  # not even the memory database takes changes; they stay queued
        self._closed = False
        self.late = False
        """Whether the file could not be opened yet; its contents are unknown."""
        try:
            self._disk = self._opened(BUSY_S)
        except HeteGenError as error:
            if not waits:
                raise
            self._disk = self._begin_in_memory(error)
        self._thread = threading.Thread(target=self._keep_writing, name="store", daemon=True)
        self._thread.start()

    @property
    def unsaved(self) -> bool:
        """Whether the disk accepts nothing and changes wait in memory."""
        return self._held or bool(self._waiting)

    def change(self, change: Change) -> None:
        """Queue a change."""
        with self._queue:
            self._queued.ordered.append(change)
            self._queue.notify()

    def change_latest(self, key: str, change: Change) -> None:
        """Queue a change that replaces a queued one of the same key."""
        with self._queue:
            self._queued.latest[key] = change
            self._queue.notify()

    def read(self, sql: str, *values: object) -> list[Any]:
        """Run a query after writing every queued change."""
        with self._files:
            self.flush()
            try:
                return self._current.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._renew()
                return self._current.execute(sql, values).fetchall()

    def flush(self) -> None:
        """Write all queued changes to disk, or to memory if the disk refuses them.

        An error that cannot be repaired is raised; the changes then stay queued.
        """
        with self._files:
            with self._queue:
                changes, self._queued = self._queued, _Changes()
            if not changes:
                return
            try:
                self._write(changes)
            except BaseException:
                self._put_back(changes)
                raise

    def retry(self) -> None:
        """Write queued and waiting changes as far as the disk accepts them."""
        with self._files:
            try:
                self.flush()
                self._replay()
            except Exception:  # noqa: BLE001  Nothing is lost, changes stay queued; the thread must live to try again.
                self._hold()
            else:
                self._let_go()

    def close(self) -> None:
        """Write what is left and close the file; the object cannot be used afterwards."""
        if self._closed:
            return
        with self._files:
            self.retry()
            if self.unsaved:
                log.error("The disk still takes nothing: what was said since then is lost with this window.")
        with self._queue:
            self._closed = True
            self._queue.notify()
        self._thread.join()
        self._disk.close()
        if self._memory:
            self._memory.close()

    @property
    def _current(self) -> sqlite3.Connection:
        return self._memory or self._disk

    def _put_back(self, changes: _Changes) -> None:
        with self._queue:
            changes.take(self._queued)
            self._queued = changes

    def _hold(self) -> None:
        """Report that nothing can be written, for an unforeseen reason."""
        if not self._held:
            log.exception("The conversations cannot be written; it is tried again.")
            self._held = True
            self._tell(HELD)

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._tell(SAVED)

    def _write(self, changes: _Changes) -> None:
        if self._memory is None:
            try:
                self._carry_out(self._disk, changes)
            except sqlite3.Error as error:
                self._mend(error)
            else:
                return
        done = self._carry_out(self._current, changes)
        if self._memory is not None:
            self._waiting.take(done)

    def _carry_out(self, database: sqlite3.Connection, changes: _Changes) -> _Changes:
        """Apply all changes in one transaction, except those that are wrong in themselves; return the applied ones.

        Errors of the file itself are raised, and then no change was applied.
        """
        try:
            _apply(database, changes)
        except Exception as error:  # A change may fail in any way; the others must not suffer.
            if _is_of_the_file(error):
                raise
        else:
            return changes
        wrong = _apply_what_is_sound(database, changes)
        if wrong:
            self._tell(LEFT_OUT)
        return changes.without(wrong)

    def _mend(self, error: sqlite3.Error) -> None:
        """Make the file usable again after a failed write, or raise."""
        if is_full(error):
            self._move_to_memory(FULL)
        elif is_damage(error):
            self._renew()
        elif may_pass(error):
            log.warning("The disk refuses the conversations: %s", error)
            self._move_to_memory(HELD)
        else:
            raise error

    def _move_to_memory(self, why: Report) -> None:
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self._disk.backup(memory)
            memory.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            memory.close()
            raise
        self._memory = memory
        with self._queue:
            self._queue.notify()
        self._tell(why)

    def _replay(self) -> None:
        """Write the changes that wait in memory to the disk, if it accepts them by now."""
        if self._memory is None or (self.late and not self._opened_late()):
            return
        try:
            self._carry_out(self._disk, self._waiting)
        except sqlite3.Error as error:
            if is_damage(error):
                self._renew()
            elif not is_full(error) and not may_pass(error):
                raise
            return
        self._memory.close()
        self._memory = None
        self._waiting = _Changes()
        self._tell(SAVED)

    def _keep_writing(self) -> None:
        while self._wait():
            self.retry()

    def _wait(self) -> bool:
        """Sleep until there is something to write, then a little longer to collect more; False when closed."""
        with self._queue:
            if self._held:
                self._queue.wait_for(lambda: self._closed, RETRY_S)
            if not self._closed and not self._queued:
                self._queue.wait(RETRY_S if self._memory else None)
            if self._queued:
                self._queue.wait_for(lambda: self._closed, FLUSH_S)
            return not self._closed

    def _begin_in_memory(self, error: HeteGenError) -> sqlite3.Connection:
        """Return the database to use until the file can be opened."""
        self.late = True
        self._memory = self._memory or open_memory()
        self._tell(Report("not_kept", error.what, error.why, error.next_step))
        return self._memory

    def _opened_late(self) -> bool:
        """Whether the file can be opened by now, without waiting for other users of it."""
        try:
            self._disk = self._opened(0.0)
        except HeteGenError:
            return False
        self.late = False
        return True

    def _opened(self, patience_s: float) -> sqlite3.Connection:
        finish_recovery(self._path)
        try:
            return open_database(self._path, patience_s)
        except StoreDamaged as error:
            return self._recovered(error.why)

    def _renew(self) -> None:
        """Recover from damage found in use, and continue with the new file."""
        self._disk.close()
        try:
            self._disk = self._recovered(sentence("It was found while in use."))
        except HeteGenError as error:
            self._disk = self._begin_in_memory(error)

    def _recovered(self, why: str) -> sqlite3.Connection:
        aside, messages = recover(self._path)
        database = open_database(self._path)
        self._tell(
            Report(
                "recovered",
                sentence("The conversations were damaged; {} messages were recovered.", f"{messages:,}"),
                why,
                sentence("The damaged file was kept as {}.", aside.name),
            )
        )
        return database


def _apply(database: sqlite3.Connection, changes: _Changes) -> None:
    with transaction(database):
        for change in changes:
            change(database)


def _apply_what_is_sound(database: sqlite3.Connection, changes: _Changes) -> set[Change]:
    """Apply each change alone, all in one transaction; return those that are wrong in themselves and left out."""
    wrong: set[Change] = set()
    with transaction(database):
        for change in changes:
            database.execute("SAVEPOINT one")
            try:
                change(database)
            except Exception as error:  # Whatever the error, only this change is affected.
                if _is_of_the_file(error):
                    raise
                log.exception("A change could not be saved and was left out.")
                database.execute("ROLLBACK TO one")
                wrong.add(change)
            database.execute("RELEASE one")
    return wrong


def _is_of_the_file(error: Exception) -> bool:
    """Whether the file, rather than this change, caused the error."""
    if isinstance(error, sqlite3.Error):
        return is_full(error) or is_damage(error) or may_pass(error)
    return isinstance(error, MemoryError)
