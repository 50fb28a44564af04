"""A card is tried with the torch of the program that asks, which may be a downloaded one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.accelerators.trial import tried


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError", "OSError"])
def test_the_other_process_imports_the_same_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    fetched = tmp_path / "torch" / "__init__.py"
    fetched.parent.mkdir()
    fetched.write_text(f"raise {error}('this is the one that was fetched')", "utf-8")
    monkeypatch.setattr(torch, "__file__", str(fetched))
    assert tried(0).why == f"{error}: this is the one that was fetched"
