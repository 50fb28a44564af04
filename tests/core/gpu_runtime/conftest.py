from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.gpu_runtime.cuda_choice import BUILDS, Nvidia, NvidiaCard
from core.gpu_runtime.store import Runtime
from core.gpu_runtime.wheel_index import Indexes
from core.gpu_runtime.wheel_selection import Needed, find_needed
from core.hub.client import Client
from core.hub.downloader import DownloadOptions
from core.hub.progress import Pace
from core.hub.retry import Retries
from tests.core.gpu_runtime.wheels import Index, runtime_wheels

MACHINE = Nvidia("580.65.06", (NvidiaCard("Fake Card", (8, 9)),))
QUICK = Retries(limit=2, first_s=0.01, longest_s=0.02)


@pytest.fixture
def index() -> Iterator[Index]:
    with Index(runtime_wheels()) as served:
        yield served


@pytest.fixture
def client(index: Index) -> Iterator[Client]:
    with Client(index.address, retries=QUICK) as made:
        yield made


@pytest.fixture
def needed(client: Client, index: Index) -> Needed:
    return find_needed(Indexes(client, index.pages, "cu130"), BUILDS[0], index_torch())


def index_torch() -> str:
    from core.gpu_runtime.start import own_torch

    return own_torch()


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path / "data with späces" / "gpu-runtime")


@pytest.fixture
def manner() -> DownloadOptions:
    return DownloadOptions(Pace(), QUICK, reserve_bytes=0)
