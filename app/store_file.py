"""The file under the conversations: one connection, changes in order, and what to do when the disk says no.

Changes are queued and written together by this object's own thread, at most FLUSH_S late, so that whoever makes them
never waits for the disk. When the disk is full they go on in memory and are replayed as soon as there is room; when
the file turns out to be damaged, what can be read is moved to a new one. Listeners hear of both as a `Report`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.store_recovery import restore, salvage
from app.store_schema import StoreDamaged, is_damage, is_full, open_database, transaction

log = logging.getLogger(__name__)

FLUSH_S = 0.15
RETRY_S = 2.0

Change = Callable[[sqlite3.Connection], None]
"""Carried out inside a transaction, perhaps again later on another connection: it must not look at anything else."""


@dataclass(frozen=True)
class Report:
    """Something about the file that a person should hear of, in the three sentences of an error."""

    kind: Literal["full", "saved", "recovered", "interrupted"]
    what: str
    why: str = ""
    next_step: str = ""


FULL = Report(
    "full",
    "The conversation is not being saved.",
    "The disk is full.",
    "Free some space and it is saved by itself; until then it is kept in memory.",
)
SAVED = Report("saved", "The conversation is saved again.")


@dataclass
class _Changes:
    """Changes in order, and after them those of which only the latest for its key counts."""

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


class StoreFile:
    """Any thread may call any method. `tell` is called from the thread that found the news, often the own one."""

    def __init__(self, path: Path, tell: Callable[[Report], None]) -> None:
        """Open or make the file. Raises StoreFull or StoreUnusable; a damaged file is set aside and recovered."""
        self._path = path
        self._tell = tell
        self._files = threading.RLock()  # held while the connections are used
        self._queue = threading.Condition()  # held only to add or take changes
        self._queued = _Changes()
        self._waiting = _Changes()  # for the disk to have room
        self._memory: sqlite3.Connection | None = None
        self._closed = False
        self._disk = self._opened()
        self._thread = threading.Thread(target=self._keep_writing, name="store", daemon=True)
        self._thread.start()

    @property
    def unsaved(self) -> bool:
        """True while the disk is full and changes wait in memory."""
        return bool(self._waiting)

    def change(self, change: Change) -> None:
        """Queue a change."""
        with self._queue:
            self._queued.ordered.append(change)
            self._queue.notify()

    def change_latest(self, key: str, change: Change) -> None:
        """Queue a change that makes a still queued one of the same key needless."""
        with self._queue:
            self._queued.latest[key] = change
            self._queue.notify()

    def read(self, sql: str, *values: object) -> list[Any]:
        """Rows, with every queued change in them."""
        with self._files:
            self.settle()
            try:
                return self._current.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._renew()
                return self._current.execute(sql, values).fetchall()

    def settle(self) -> None:
        """Write all that is queued; on return it is on the disk, or in memory if the disk is full."""
        with self._files:
            with self._queue:
                changes, self._queued = self._queued, _Changes()
            if changes:
                self._write(changes)

    def retry(self) -> None:
        """Write what waits for room, if there is some by now."""
        with self._files:
            self.settle()
            self._retry()

    def close(self) -> None:
        """Write what is left and let go of the file; afterwards the object is of no use."""
        if self._closed:
            return
        with self._files:
            self.retry()
            if self._waiting:
                log.error("The disk is still full: what was said since then is lost with this window.")
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

    def _write(self, changes: _Changes) -> None:
        if self._memory is None:
            try:
                _apply(self._disk, changes)
            except sqlite3.DatabaseError as error:
                self._mend(error)
            else:
                return
        _apply(self._current, changes)
        if self._memory is not None:
            self._waiting.take(changes)

    def _mend(self, error: sqlite3.DatabaseError) -> None:
        """Make the file usable again after a failed write, or raise."""
        if is_full(error):
            self._move_to_memory()
        elif is_damage(error):
            self._renew()
        else:
            raise error

    def _move_to_memory(self) -> None:
        self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._disk.backup(self._memory)
        self._memory.execute("PRAGMA foreign_keys = ON")
        with self._queue:
            self._queue.notify()
        self._tell(FULL)

    def _retry(self) -> None:
        """Bring what waits in memory to the disk, if there is room by now."""
        if self._memory is None:
            return
        try:
            _apply(self._disk, self._waiting)
        except sqlite3.OperationalError as error:
            if not is_full(error):
                raise
            return
        self._memory.close()
        self._memory = None
        self._waiting = _Changes()
        self._tell(SAVED)

    def _keep_writing(self) -> None:
        while self._wait():
            self.settle()
            with self._files:
                self._retry()

    def _wait(self) -> bool:
        """Sleep until there is something to write, and then a little for more of it; False when closed."""
        with self._queue:
            if not self._closed and not self._queued:
                self._queue.wait(RETRY_S if self._memory else None)
            if self._queued:
                self._queue.wait_for(lambda: self._closed, FLUSH_S)
            return not self._closed

    def _opened(self) -> sqlite3.Connection:
        try:
            return open_database(self._path)
        except StoreDamaged as error:
            return self._recovered(error.why)

    def _renew(self) -> None:
        """Damage showed itself in use: recover, and go on with the new file."""
        self._disk.close()
        self._disk = self._recovered("It was found while in use.")

    def _recovered(self, why: str) -> sqlite3.Connection:
        rows = salvage(self._path)
        aside = _free_name(self._path)
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        database = open_database(self._path)
        with transaction(database):
            restore(database, rows)
        self._tell(
            Report(
                "recovered",
                f"The conversations were damaged; {len(rows.messages):,} messages were recovered.",
                why,
                f"The damaged file was kept as {aside.name}.",
            )
        )
        return database


def _apply(database: sqlite3.Connection, changes: _Changes) -> None:
    with transaction(database):
        for change in changes:
            change(database)


def _free_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = [path.with_name(f"{path.stem}.damaged-{stamp}{more}{path.suffix}") for more in ("", *"abcdefgh")]
    return next((name for name in names if not name.exists()), names[0])
