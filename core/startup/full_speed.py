"""Keeps Windows and macOS from slowing this process down while its window is minimised or hidden.

Otherwise a reply slows down as soon as the user looks at another window: Windows moves the threads of a process that
cannot be seen to the efficiency cores, at a low clock (EcoQoS), and macOS gives it little processor time (App Nap). The
setting is the process's, because the engine's thread, our kernels' threads, torch's and the drivers' work on the same
token. It does nothing while they sleep, and lets the computer sleep.

https://learn.microsoft.com/windows/win32/procthread/quality-of-service
https://developer.apple.com/documentation/foundation/processinfo/beginactivity(options:reason:)
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Any

THIS_PROCESS = -1
"""Windows' handle of the calling process."""
POWER_THROTTLING = 4
"""ProcessPowerThrottling of PROCESS_INFORMATION_CLASS."""
EXECUTION_SPEED = 1
"""PROCESS_POWER_THROTTLING_EXECUTION_SPEED."""
FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Foundation"
OBJECTIVE_C = "/usr/lib/libobjc.A.dylib"
USER_INITIATED = 0x00EFFFFF
"""NSActivityUserInitiatedAllowingIdleSystemSleep."""


class PowerThrottling(ctypes.Structure):
    """PROCESS_POWER_THROTTLING_STATE: what the process decides (`control`), and of this what is throttled (`state`)."""

    _fields_ = (("version", ctypes.c_uint32), ("control", ctypes.c_uint32), ("state", ctypes.c_uint32))


def keep_full_speed() -> None:
    """Let this process compute at full speed whether its window is seen or not; does nothing on other systems."""
    if sys.platform == "win32":
        refuse_throttling(ctypes.WinDLL("kernel32"))
    elif sys.platform == "darwin":
        with suppress(OSError):  # a macOS without them would only be slower
            ctypes.CDLL(FOUNDATION)  # brings the classes
            begin_activity(ctypes.CDLL(OBJECTIVE_C))


def refuse_throttling(kernel: Any) -> bool:
    """Return whether Windows promises full speed. `kernel`: kernel32."""
    # Windows 7 lacks the call, and Windows 10 before version 1709 refuses this setting: neither throttles.
    set_information = getattr(kernel, "SetProcessInformation", None)
    if set_information is None:
        return False
    wanted = PowerThrottling(version=1, control=EXECUTION_SPEED, state=0)
    size = ctypes.c_uint32(ctypes.sizeof(wanted))
    return bool(set_information(ctypes.c_void_p(THIS_PROCESS), POWER_THROTTLING, ctypes.byref(wanted), size))


def begin_activity(objective_c: ctypes.CDLL) -> None:
    """Tell macOS that the user waits for this process, until it ends. `objective_c`: the runtime library."""
    pointer = ctypes.c_void_p
    named = ctypes.CFUNCTYPE(pointer, ctypes.c_char_p)
    class_of, selector = named(("objc_getClass", objective_c)), named(("sel_registerName", objective_c))
    # One prototype for each list of arguments: on ARM, those of a variable list would be passed on the stack.
    call = ctypes.CFUNCTYPE(pointer, pointer, pointer)(("objc_msgSend", objective_c))
    make = ctypes.CFUNCTYPE(pointer, pointer, pointer, ctypes.c_char_p)(("objc_msgSend", objective_c))
    begin = ctypes.CFUNCTYPE(pointer, pointer, pointer, ctypes.c_uint64, pointer)(("objc_msgSend", objective_c))
    reason = make(class_of(b"NSString"), selector(b"stringWithUTF8String:"), b"A reply is written")
    process = call(class_of(b"NSProcessInfo"), selector(b"processInfo"))
    activity = begin(process, selector(b"beginActivityWithOptions:reason:"), USER_INITIATED, reason)
    call(activity, selector(b"retain"))  # the activity would end with the object, which is released automatically
