from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.gpu_runtime.start import own_torch
from core.gpu_runtime.store import Runtime
from core.gpu_runtime.wheel_index import Indexes
from core.gpu_runtime.wheel_selection import Needed, find_needed
from core.hub.client import Client
from core.hub.downloader import DownloadOptions
from core.hub.progress import Pace
from core.hub.retry import Retries
from tests.core.gpu_runtime.wheels import OFFERS, Index, Offer

QUICK = Retries(limit=2, first_s=0.01, longest_s=0.02)


@pytest.fixture(params=OFFERS, ids=lambda offer: offer.tag)
def offer(request: pytest.FixtureRequest) -> Offer:
    """Return the build for each maker's cards in turn."""
    assert isinstance(request.param, Offer)
    return request.param


@pytest.fixture
def index(offer: Offer) -> Iterator[Index]:
    with Index(offer) as served:
        yield served


@pytest.fixture
def client(index: Index) -> Iterator[Client]:
    with Client(index.address, retries=QUICK) as made:
        yield made


@pytest.fixture
def needed(client: Client, index: Index, offer: Offer) -> Needed:
    return find_needed(Indexes(client, index.pages, offer.tag), offer.build, own_torch())


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path / "data with späces" / "gpu-runtime")


@pytest.fixture
def manner() -> DownloadOptions:
    return DownloadOptions(Pace(), QUICK, reserve_bytes=0)
