"""The engine's tests: one thread, the same random numbers each time, and a profile of the machine measured once."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch
from torch import Tensor

from core.paths import HOME_VARIABLE


class TorchNumbers:
    """torch's generator as hypothesis drives the others: seeded for every example, so a failure can be repeated."""

    def seed(self, number: int) -> None:
        torch.manual_seed(number)

    def getstate(self) -> Tensor:
        return torch.get_rng_state()

    def setstate(self, state: Tensor) -> None:
        torch.set_rng_state(state)


TORCH_NUMBERS = TorchNumbers()  # hypothesis itself keeps no reference
hypothesis.register_random(TORCH_NUMBERS)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


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
