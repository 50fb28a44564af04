"""Tracks clients, running and finished requests for the server's page, its log and /metrics. Never any text."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Literal

from core.events import Event, Finished, Piece, Prefill, Stats, ToolCallPiece

LOG_LINES = 500
Stage = Literal["waiting", "reading", "replying"]


@dataclass
class Live:
    """A request that is being answered."""

    number: int
    client: str
    path: str
    began: float
    stage: Stage = "waiting"
    tokens: int = 0
    tok_s: float | None = None


@dataclass(frozen=True)
class Entry:
    """A log line for an answered request. `at` in seconds since the epoch."""

    at: float
    client: str
    path: str
    status: int
    seconds: float
    tokens: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The state at one moment. `clients`: time of the last request in seconds since the epoch, by client."""

    live: tuple[Live, ...]
    clients: tuple[tuple[str, float], ...]
    log: tuple[Entry, ...]


@dataclass
class Totals:
    """Counters since the server started."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    last_tok_s: float = 0.0


class Activity:
    """Thread-safe request counters. `changed`, if given, is called after every change, in the server's thread."""

    def __init__(self, changed: Callable[[], None] | None = None) -> None:
        self._lock = Lock()
        self._numbers = count(1)
        self._live: dict[int, Live] = {}
        self._clients: dict[str, float] = {}
        self._log: deque[Entry] = deque(maxlen=LOG_LINES)
        self._changed = changed
        self.totals = Totals()

    def live(self, client: str, path: str) -> Live:
        """Create the record of a new request; `begin` and `end` count it."""
        return Live(next(self._numbers), client, path, time.time())

    def begin(self, live: Live) -> None:
        """Count a request as running."""
        with self._lock:
            self._live[live.number] = live
        self._tell()

    def end(self, live: Live) -> None:
        """Count a request as ended."""
        with self._lock:
            self._live.pop(live.number, None)
        self._tell()

    @property
    def running(self) -> int:
        """Number of requests that are waiting or being answered."""
        return len(self._live)

    def heard(self, live: Live, event: Event) -> None:
        """Update a request's record from an event of its reply."""
        match event:
            case Prefill():
                live.stage = "reading"
            case Piece() | ToolCallPiece():
                live.stage = "replying"
            case Stats():
                live.tokens, live.tok_s = event.new_tokens, event.tok_s
            case Finished(_, stats):
                live.tokens = stats.new_tokens
                self._count(stats)

    def answered(self, client: str, path: str, status: int, seconds: float, tokens: int = 0) -> None:
        """Log a finished request."""
        now = time.time()
        with self._lock:
            self.totals.requests[path, status] += 1
            self._log.append(Entry(now, client, path, status, seconds, tokens))
            self._clients.pop(client, None)
            self._clients[client] = now
            while len(self._clients) > LOG_LINES:
                del self._clients[next(iter(self._clients))]
        self._tell()

    def snapshot(self) -> Snapshot:
        """Return the current state as a record."""
        with self._lock:
            return Snapshot(tuple(self._live.values()), tuple(self._clients.items()), tuple(self._log))

    def _count(self, stats: Stats) -> None:
        with self._lock:
            self.totals.prompt_tokens += stats.prompt_tokens
            self.totals.reused_tokens += stats.reused_tokens
            self.totals.new_tokens += stats.new_tokens
            self.totals.last_tok_s = stats.mean_tok_s or 0.0

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed()
