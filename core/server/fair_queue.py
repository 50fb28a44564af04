"""One engine, many clients: jobs wait in a line per client, and the clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from threading import Condition
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue needs to know of a job."""

    @property
    def client(self) -> str:
        """Whose turn it is counted for."""


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """A queue whose `take` serves each client once before any of them a second time. For any threads."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._changed = Condition()
        self._closed = False

    def put(self, item: Item) -> None:
        """Let an item wait behind its client's others."""
        with self._changed:
            self._lines.setdefault(item.client, deque()).append(item)
            self._changed.notify()

    def take(self, *, wait: bool = True) -> Item | None:
        """The next item. None when there is none and `wait` is False, or the queue was closed."""
        with self._changed:
            while wait and not self._lines and not self._closed:
                self._changed.wait()
            if not self._lines or self._closed:
                return None
            client, line = self._lines.popitem(last=False)
            item = line.popleft()
            if line:
                self._lines[client] = line  # at the end: the others come first
            return item

    def close(self) -> list[Item]:
        """Wake whoever waits in `take`; the items that were not served."""
        with self._changed:
            self._closed = True
            left = [item for line in self._lines.values() for item in line]
            self._lines.clear()
            self._changed.notify_all()
            return left

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._lines.values()))
