"""What `build.py` refuses to ship."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def build(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """build.py in a checkout whose kernels were never compiled."""
    monkeypatch.syspath_prepend(str(repository / "packaging"))
    found = import_module("build")
    (tmp_path / "core" / "kernels" / "native").mkdir(parents=True)
    (tmp_path / "core" / "kernels" / "native" / "dispatch.c").touch()
    monkeypatch.setattr(found, "ROOT", tmp_path)
    monkeypatch.setattr(found, "WORK", tmp_path / "build")
    return found


def test_there_is_no_bundle_without_kernels(build: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    # Without a compiler setup.py warns and succeeds, like this one.
    (tmp_path / "setup.py").write_text("print('warning: no compiler')\n", "utf-8")
    with pytest.raises(SystemExit, match="not compiled"):
        build.kernels()
    assert "warning: no compiler" in capfd.readouterr().out
