"""Facts about the processor and memory as reported by the system, without measuring."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MOST_GROUPS = 32
THIS_PROCESS = -1
"""Windows' handle of the calling process."""


@dataclass(frozen=True)
class CpuInfo:
    """Name, cores and the instruction set extensions that matter for matrix products."""

    name: str
    physical_cores: int
    logical_cores: int
    isa: tuple[str, ...]


def cpu_info() -> CpuInfo:
    """Return name, cores and instruction sets of this processor."""
    logical = usable_cores()
    return CpuInfo(_name(), _physical(logical), logical, _isa())


def usable_cores() -> int:
    """Return the number of logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    if sys.platform == "win32":
        return windows_cores(ctypes.WinDLL("kernel32")) or psutil.cpu_count() or 1
    return psutil.cpu_count() or 1


def windows_cores(kernel: Any) -> int:
    """Return the logical cores that Windows lets this process use; 0 if it does not say.

    They are in groups of at most 64. Before Windows 11 a process runs in one group; since then in all, unless it is
    bound to some cores of one. `kernel`: kernel32.
    """
    groups, count = (ctypes.c_ushort * MOST_GROUPS)(), ctypes.c_ushort(MOST_GROUPS)
    own = ctypes.c_void_p(THIS_PROCESS)
    if not kernel.GetProcessGroupAffinity(own, ctypes.byref(count), groups):
        return 0
    if count.value > 1:
        return sum(int(kernel.GetActiveProcessorCount(group)) for group in groups[: count.value])
    usable, present = ctypes.c_size_t(), ctypes.c_size_t()
    kernel.GetProcessAffinityMask(own, ctypes.byref(usable), ctypes.byref(present))
    return usable.value.bit_count()


def _physical(logical: int) -> int:
    """Return the number of whole cores among so many usable logical ones."""
    every, cores = psutil.cpu_count() or logical, psutil.cpu_count(logical=False) or logical
    # Windows numbers the threads of a core one after the other; other systems usually begin with one of each core.
    share = cores * logical // every if platform.system() == "Windows" else cores
    return max(1, min(share, logical))


def ram() -> tuple[int, int]:
    """Return total and available bytes of RAM, of the machine or of the container that this process runs in."""
    memory = psutil.virtual_memory()
    limit, used = _container_limit()
    if limit is None or limit >= memory.total:
        return memory.total, memory.available
    return limit, max(0, min(memory.available, limit - used))


def on_battery() -> bool:
    """Return whether the computer runs on battery."""
    # Not every system has the call, and containers report no battery.
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    return battery is not None and battery.power_plugged is False


def _isa() -> tuple[str, ...]:
    import torch

    found = torch.cpu.get_capabilities()
    wanted = (
        "avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "amx_fp16", "neon",
        "i8mm", "bf16", "sve", "sve2",
    )  # fmt: skip
    return tuple(name for name in wanted if found.get(name))


def _name() -> str:
    if platform.system() == "Linux":
        return _linux_name() or platform.machine()
    if platform.system() == "Darwin":
        return _answer("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return _windows_name() or platform.processor() or platform.machine()


def _windows_name() -> str:
    """Return the processor's marketing name; `platform` only knows family, model and stepping."""
    if sys.platform == "win32":
        import winreg

        place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return ""


def _linux_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _container_limit() -> tuple[int | None, int]:
    """Return the memory limit of Linux control groups (None = no limit), and the bytes counted against it."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        # Page cache is counted, too, but is reclaimed when memory is needed.
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None, 0
    reclaimable = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return (None if limit == "max" else int(limit)), max(0, used - reclaimable)
