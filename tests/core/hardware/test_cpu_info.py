"""Facts about the processor as reported by the system."""

from __future__ import annotations

import platform
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from core.hardware.cpu_info import cpu_info


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
