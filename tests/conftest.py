"""Setup of every test: no window system, no network access by libraries, temporary folders."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from core.startup.environment import prepare_environment

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
prepare_environment()
# Durations mean nothing here: the machine may be busy, and the first text waits for a table.
hypothesis.settings.register_profile("any pace", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any pace")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from reading or writing the user's own files."""
    home = tmp_path_factory.mktemp("home", numbered=True)
    monkeypatch.setenv("HETEGEN_HOME", str(home / "hetegen"))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return Path(__file__).resolve().parent.parent
