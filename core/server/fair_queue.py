"""A fair queue for one engine and many clients: each client has its own line, and clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from threading import Condition
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue needs to know about a job."""

    @property
    def client(self) -> str:
        """The client whose turn it takes."""


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """A queue whose `take` serves each client once before serving any of them again. Thread-safe."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._changed = Condition()
        self._closed = False

    def put(self, item: Item) -> None:
        """Append an item to its client's line."""
        with self._changed:
            self._lines.setdefault(item.client, deque()).append(item)
            self._changed.notify()

    def take(self, *, wait: bool = True) -> Item | None:
        """Return the next item; None if there is none and `wait` is False, or if the queue was closed."""
        with self._changed:
            while wait and not self._lines and not self._closed:
                self._changed.wait()
            if not self._lines or self._closed:
                return None
            client, line = self._lines.popitem(last=False)
            item = line.popleft()
            if line:
                self._lines[client] = line  # re-inserted at the end: other clients come first
            return item

    def close(self) -> list[Item]:
        """Wake the callers of `take`; return the items that were not served."""
        with self._changed:
            self._closed = True
            left = [item for line in self._lines.values() for item in line]
            self._lines.clear()
            self._changed.notify_all()
            return left

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._lines.values()))
