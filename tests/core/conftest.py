"""Fixtures of the engine's tests: one thread, reproducible random numbers, and a machine profile measured once."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import torch
from torch import Tensor

from core.hardware import benchmark
from core.paths import HOME_VARIABLE
from tests.core.second_device import SecondCard, SecondDevice, cannot_build, second_device


class TorchNumbers:
    """torch's generator for hypothesis: seeded for every example, so that failures are reproducible."""

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


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models are slower with several threads, and results must not depend on their number. For each test: a model
    that is loaded leaves as many as the processor has cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-home")


@pytest.fixture(scope="session", autouse=True)
def _all_are_known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the specifications of all tiny models, which are more than a user has, for all processes of this run: a
    survey takes longer than most replies."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.model.spec_cache.KEPT_SPECS", 1000)
        patch.setattr("core.model.spec_cache.cache_folder", lambda: shared / "specifications")
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_processor() -> Iterator[None]:
    """Measure the processor once for each number of threads, not again for every simulated card."""
    own = benchmark.measure_cpu
    by_threads = cache(lambda threads: own())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "measure_cpu", lambda: deepcopy(by_threads(torch.get_num_threads())))
        yield


@pytest.fixture(autouse=True)
def _measured_once(_own_folders: None, _shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(_shared_home))


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plans change in mid-reply only where a test asks for it: looks at the memory come by the clock, and measured
    speeds, which are remembered for the next load of the model, are those of a busy machine."""
    for name in ("LOOK_EVERY_S", "RETURN_EVERY_S", "LEARN_TOKENS"):
        monkeypatch.setattr(f"core.runtime.replanner.{name}", math.inf)


@pytest.fixture
def second() -> Iterator[SecondDevice]:
    """Provide the second device, plugged in; any ordering violation fails the test, whatever was computed."""
    if why := cannot_build():
        pytest.skip(why)
    device = second_device()
    device.plug(True)
    yield device
    gc.collect()
    violation = device.violation()
    device.plug(False)
    assert not violation


@pytest.fixture
def card(second: SecondDevice) -> SecondCard:
    """Provide the engine's class for cards, on the second device."""
    return SecondCard(second)
