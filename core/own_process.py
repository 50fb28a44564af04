"""Runs a module of this program in another process, so that a crash or hang there does no further harm."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

END_S = 5.0
"""A process that was killed ends at once, unless its driver holds it."""


def command(module: str, argument: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` with these arguments.

    `argument` makes a bundle's own executable, which has no Python beside it, run it.
    """
    own = [argument] if getattr(sys, "frozen", False) else ["-m", module]
    return [sys.executable, *own, *arguments]


def source_folder() -> Path | None:
    """Return the folder in which a command finds the modules; None in a bundle."""
    root = Path(__file__).resolve().parents[1]
    return root if root.is_dir() else None


def without_window() -> int:
    """Return the `creationflags` of a process that opens no window on Windows."""
    return getattr(subprocess, "CREATE_NO_WINDOW", 0)


def without_crash_windows() -> None:
    """Let a crash end this process at once: Windows would show a window first, and wait for the user to close it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.SetErrorMode(
            msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX | msvcrt.SEM_NOOPENFILEERRORBOX
        )


def ends(process: subprocess.Popen[bytes]) -> bool:
    """End a process; return whether it has ended. One that its driver holds is left behind, unwaited for."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    return process.returncode is not None
