import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.app.conftest import LONG_MS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send these signals there")
PROGRAM = """
import signal, sys
for kind in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(kind, signal.SIG_DFL)  # whatever started the tests may ignore them
signal.signal(signal.SIGINT, getattr(signal, sys.argv[2]))
from PySide6.QtCore import QCoreApplication
from app.system.interrupts import Interrupts
qt = QCoreApplication([])
def close():
    print("asked", flush=True)
    if sys.argv[1] == "closes":
        qt.quit()
Interrupts(qt).asked.connect(close)
print("here", flush=True)
sys.exit(qt.exec())
"""
LONG_S = LONG_MS / 1000
KINDS = [signal.SIGINT, signal.SIGTERM] if sys.platform == "win32" else [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def program(way: str, interrupts: str = "SIG_DFL") -> Iterator[subprocess.Popen[str]]:
    """Start a program whose window `closes` or `hangs` when asked to. `interrupts`: what Ctrl+C does at its start."""
    command = [sys.executable, "-c", PROGRAM, way, interrupts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("kind", KINDS)
def test_the_window_is_asked_to_close(kind: signal.Signals) -> None:
    with program("closes") as process:
        assert line(process) == "here"
        process.send_signal(kind)
        assert line(process) == "asked"
        assert process.wait(LONG_S) == 0


def test_a_second_signal_ends_a_program_that_hangs() -> None:
    with program("hangs") as process:
        assert line(process) == "here"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "asked"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG_S) == -signal.SIGTERM


def test_a_signal_that_the_starter_ignores_stays_ignored() -> None:
    with program("closes", "SIG_IGN") as process:
        assert line(process) == "here"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert line(process) == "asked"
        assert process.wait(LONG_S) == 0
        assert process.stdout is not None
        assert not process.stdout.read()
