"""Retries: how often, how long to wait, and how to stop waiting on request."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from core.errors import HeteGenError
from core.events import Stop, never

T = TypeVar("T")
NAP_S = 0.05
# If a server asks for more patience than this, the user is told instead.
LONGEST_ASKED_S = 600.0


class Stopped(Exception):
    """The user asked to stop; caught where the work began."""


class Transient(Exception):
    """A failure that may pass. `error`: what to report if it does not; `after_s`: the wait that the server asked
    for."""

    def __init__(self, error: HeteGenError, after_s: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.after_s = after_s


@dataclass(frozen=True)
class Retries:
    """At most `limit` consecutive retries; waits grow from `first_s` to `longest_s` with up to 50 % jitter."""

    limit: int = 8
    first_s: float = 0.5
    longest_s: float = 60.0

    def wait_s(self, failures: int, asked_s: float | None) -> float:
        """Return the seconds before attempt `failures` + 1; never less than the server asked for."""
        # With jitter, clients that were cut off together do not return together.
        grown = min(self.first_s * 2.0 ** (failures - 1), self.longest_s) * random.uniform(0.5, 1.0)
        return max(grown, asked_s or 0.0)

    def gives_up(self, failures: int, asked_s: float | None) -> bool:
        """Return whether `failures` in a row, or a wait of `asked_s`, are too much."""
        return failures > self.limit or (asked_s or 0.0) > LONGEST_ASKED_S


def nap(seconds: float, stop: Stop) -> None:
    """Sleep for `seconds`. Raises Stopped soon after `stop` returns True."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop():
            raise Stopped
        time.sleep(min(left, NAP_S))


def retry(action: Callable[[], T], retries: Retries, stop: Stop = never) -> T:
    """Return what `action` returns, retrying after each Transient. Raises the last one's error on giving up."""
    failures = 0
    while True:
        if stop():
            raise Stopped
        try:
            return action()
        except Transient as failure:
            failures += 1
            if retries.gives_up(failures, failure.after_s):
                raise failure.error from failure
            nap(retries.wait_s(failures, failure.after_s), stop)
