"""Runs the event loop until something has happened, outside of pytest."""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QApplication, QWidget


def delete(widget: QWidget) -> None:
    """Delete a widget now: outside of an event loop Qt keeps what is to be deleted later, and restyles all of it."""
    widget.deleteLater()
    QApplication.processEvents()
    QApplication.sendPostedEvents(widget, QEvent.Type.DeferredDelete)


def until(met: Callable[[], bool], limit_s: float = 120.0, step_s: float = 0.002) -> None:
    """Process events until `met`. Raises AssertionError after `limit_s`."""
    end = time.perf_counter() + limit_s
    while not met():
        QApplication.processEvents()
        assert time.perf_counter() < end, "it did not happen"
        time.sleep(step_s)


def idle(seconds: float) -> None:
    """Let animations and delayed work finish."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.005)
