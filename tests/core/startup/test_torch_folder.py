"""torch imported from a folder like an environment, with the libraries that lie beside its packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from core.startup.torch_folder import PACKAGES, packages_of, use_packages


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", sys.path.copy())


def test_packages_lie_as_deep_as_in_an_environment(tmp_path: Path) -> None:
    assert packages_of(tmp_path) == tmp_path
    (tmp_path / PACKAGES).mkdir(parents=True)
    assert packages_of(tmp_path) == tmp_path / PACKAGES
    assert (tmp_path / PACKAGES / "torch" / "lib" / "../../../..").resolve() == (tmp_path / "lib").resolve()


@pytest.mark.parametrize("laid", [PACKAGES, "site-packages"])
def test_windows_finds_libraries_that_belong_to_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, laid: str
) -> None:
    added: list[str] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "add_dll_directory", added.append, raising=False)
    (tmp_path / "Library" / "bin").mkdir(parents=True)
    use_packages(tmp_path / laid)
    assert sys.path[0] == str(tmp_path / laid)
    assert added == ([str(tmp_path / "Library" / "bin")] if laid == PACKAGES else [])
