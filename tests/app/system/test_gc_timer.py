"""Garbage is collected in the window's thread."""

import gc
import threading
import weakref

from pytestqt.qtbot import QtBot

from app.system.gc_timer import Collector


class Node:
    def __init__(self) -> None:
        self.itself = self


def fill_a_generation() -> list[list[int]]:
    """Create more objects than trigger Python's automatic collection."""
    return [[number] for number in range(10 * gc.get_threshold()[0])]


def test_only_the_windows_thread_collects(qtbot: QtBot) -> None:
    collector = Collector()
    lost = weakref.ref(Node())
    thread = threading.Thread(target=fill_a_generation)
    thread.start()
    thread.join()
    assert lost() is not None
    kept = fill_a_generation()
    collector.collect()
    assert lost() is None
    assert kept
