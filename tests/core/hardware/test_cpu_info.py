"""Facts about the processor as reported by the system."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from core.hardware import cpu_info as cpu_info_module
from core.hardware.cpu_info import cpu_info, windows_cores


class Kernel:
    """Windows' answers for a process in `groups` (sizes), bound to the cores of `mask` if it is in only one of them."""

    def __init__(self, groups: Sequence[int], mask: int = 0) -> None:
        self._groups, self._mask = groups, mask

    def GetProcessGroupAffinity(self, process: Any, count: Any, numbers: Any) -> int:
        put(count, ctypes.c_ushort, len(self._groups))
        numbers[: len(self._groups)] = range(len(self._groups))
        return len(self._groups)

    def GetActiveProcessorCount(self, group: int) -> int:
        return self._groups[group]

    def GetProcessAffinityMask(self, process: Any, usable: Any, present: Any) -> int:
        put(usable, ctypes.c_size_t, self._mask)
        put(present, ctypes.c_size_t, (1 << self._groups[0]) - 1)
        return 1


def put(place: Any, kind: type[Any], value: int) -> None:
    """Write a number where a pointer points to."""
    ctypes.cast(place, ctypes.POINTER(kind)).contents.value = value


@pytest.mark.parametrize(
    ("kernel", "cores"),
    [(Kernel([64], (1 << 64) - 1), 64), (Kernel([16], 0b1111), 4), (Kernel([64, 48]), 112), (Kernel([]), 0)],
    ids=["one group of several", "bound to four", "all groups", "no answer"],
)
def test_windows_cores_are_those_of_the_processs_groups(kernel: Kernel, cores: int) -> None:
    assert windows_cores(kernel) == cores


def test_a_group_of_a_large_windows_machine_has_its_share_of_the_whole_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(cpu_info_module, "usable_cores", lambda: 64)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 128 if logical else 64)
    assert (cpu_info().physical_cores, cpu_info().logical_cores) == (32, 64)


@pytest.mark.parametrize("known", [True, False])
def test_windows_has_the_processors_name_in_its_registry(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    def value(key: str, name: str) -> tuple[str, int]:
        if not known:
            raise FileNotFoundError(name)
        return f"  {key} of the {name}  ", 1

    registry = SimpleNamespace(
        HKEY_LOCAL_MACHINE="HKLM", OpenKey=lambda root, path: nullcontext(path.rpartition("\\")[2]), QueryValueEx=value
    )
    monkeypatch.setitem(sys.modules, "winreg", registry)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6 Model 183 Stepping 1, GenuineIntel")
    name = cpu_info().name
    assert name == ("0 of the ProcessorNameString" if known else platform.processor())
