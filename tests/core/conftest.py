"""The engine's tests: one thread, and one home whose profile of the machine is measured once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.places import HOME_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models only lose by several threads, and results must not depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-home")


@pytest.fixture(autouse=True)
def _measured_once(_own_folders: None, _shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(_shared_home))
