"""Clients take turns, regardless of who came first with how many requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from core.server.fair_queue import FairQueue


@dataclass(frozen=True)
class Item:
    client: str
    number: int = 0


def test_clients_take_turns() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(3):
        queue.put(Item("greedy", number))
    queue.put(Item("late"))
    assert len(queue) == 4
    taken = [queue.take(wait=False) for _ in range(5)]
    assert taken == [Item("greedy", 0), Item("late"), Item("greedy", 1), Item("greedy", 2), None]


def test_closing_wakes_who_waits_and_gives_back_the_rest() -> None:
    queue: FairQueue[Item] = FairQueue()
    taken: list[Item | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    assert queue.close() == []
    thread.join(120)
    assert taken == [None]
    other: FairQueue[Item] = FairQueue()
    other.put(Item("one"))
    assert other.close() == [Item("one")]
