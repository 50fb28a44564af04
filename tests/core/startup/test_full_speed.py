"""Windows' power throttling of processes that cannot be seen."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from core.engine import Engine
from core.startup.full_speed import refuse_throttling

THIS_PROCESS, POWER_THROTTLING, BYTES = 2**64 - 1, 4, 12
VERSION, EXECUTION_SPEED, NOTHING = 1, 1, 0


class Kernel:
    """Windows' kernel32, which accepts the setting or does not."""

    def __init__(self, accepts: bool = True) -> None:
        self.accepts = accepts
        self.calls: list[tuple[Any, ...]] = []

    def SetProcessInformation(self, process: Any, kind: int, state: Any, size: Any) -> int:
        words = ctypes.cast(state, ctypes.POINTER(ctypes.c_uint32 * 3)).contents
        self.calls.append((process.value, kind, [*words], size.value))
        return int(self.accepts)


def test_an_engines_process_decides_on_its_speed_and_is_not_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: {"kernel32": kernel}[name], raising=False)
    Engine()
    assert kernel.calls == [(THIS_PROCESS, POWER_THROTTLING, [VERSION, EXECUTION_SPEED, NOTHING], BYTES)]


def test_a_windows_that_does_not_know_the_setting_is_left_alone() -> None:
    assert not refuse_throttling(object())
    assert not refuse_throttling(Kernel(accepts=False))


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows throttles")
def test_windows_accepts_the_setting() -> None:
    assert refuse_throttling(ctypes.WinDLL("kernel32"))
