"""How Windows and macOS treat processes that cannot be seen."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.startup.full_speed import FOUNDATION, OBJECTIVE_C, refuse_throttling

THIS_PROCESS, POWER_THROTTLING, BYTES = 2**64 - 1, 4, 12
VERSION, EXECUTION_SPEED, NOTHING = 1, 1, 0
RUNTIME = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static char said[1000], kept[16][64];
static int count;
static char *keep(const char *text) { return strncpy(kept[count++], text, 63); }
char *objc_getClass(const char *name) { return keep(name); }
char *sel_registerName(const char *name) { return keep(name); }
char *objc_msgSend(const char *to, const char *name, uintptr_t first, const char *second) {
    char *end = said + strlen(said);
    if (!strcmp(name, "stringWithUTF8String:")) return keep((const char *)first);
    if (strchr(name, ':')) sprintf(end, "[%s %s %x \"%s\"]", to, name, (unsigned)first, second);
    else sprintf(end, "[%s %s]", to, name);
    return keep(name[0] == 'b' ? "activity" : "process");
}
const char *what_was_said(void) { return said; }
"""
"""A runtime of Objective-C whose objects are their names."""


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


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("gcc"), reason="gcc builds the stand-in")
def test_macos_is_told_that_the_user_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime.c").write_text(RUNTIME, "utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "runtime.so", tmp_path / "runtime.c"], check=True)
    runtime = ctypes.CDLL(str(tmp_path / "runtime.so"))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {FOUNDATION: None, OBJECTIVE_C: runtime}[name])
    Engine()
    runtime.what_was_said.restype = ctypes.c_char_p
    begun = '[process beginActivityWithOptions:reason: efffff "A reply is written"]'
    assert runtime.what_was_said().decode() == f"[NSProcessInfo processInfo]{begun}[activity retain]"
