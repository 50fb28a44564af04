"""Keeps Windows from slowing this process down while its window is minimised or hidden.

Otherwise a reply slows down as soon as the user looks at another window: Windows moves the threads of a process that
cannot be seen to the efficiency cores, at a low clock (EcoQoS). The setting is the process's, because the engine's
thread, our kernels' threads, torch's and the drivers' work on the same token. It does nothing while they sleep.

https://learn.microsoft.com/windows/win32/procthread/quality-of-service
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

THIS_PROCESS = -1
"""Windows' handle of the calling process."""
POWER_THROTTLING = 4
"""ProcessPowerThrottling of PROCESS_INFORMATION_CLASS."""
EXECUTION_SPEED = 1
"""PROCESS_POWER_THROTTLING_EXECUTION_SPEED."""


class PowerThrottling(ctypes.Structure):
    """PROCESS_POWER_THROTTLING_STATE: what the process decides (`control`), and of this what is throttled (`state`)."""

    _fields_ = (("version", ctypes.c_uint32), ("control", ctypes.c_uint32), ("state", ctypes.c_uint32))


def keep_full_speed() -> None:
    """Let this process compute at full speed whether its window is seen or not; does nothing on other systems."""
    if sys.platform == "win32":
        refuse_throttling(ctypes.WinDLL("kernel32"))


def refuse_throttling(kernel: Any) -> bool:
    """Return whether Windows promises full speed. `kernel`: kernel32."""
    # Windows 7 lacks the call, and Windows 10 before version 1709 refuses this setting: neither throttles.
    set_information = getattr(kernel, "SetProcessInformation", None)
    if set_information is None:
        return False
    wanted = PowerThrottling(version=1, control=EXECUTION_SPEED, state=0)
    size = ctypes.c_uint32(ctypes.sizeof(wanted))
    return bool(set_information(ctypes.c_void_p(THIS_PROCESS), POWER_THROTTLING, ctypes.byref(wanted), size))
