"""Fixtures of tests of graphs, and replies whose plans depend on no clock."""

from __future__ import annotations

import pytest

from tests.core.offload.test_hetero_linear import Bench


@pytest.fixture(autouse=True)
def _steady(steady: None) -> None: ...


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the stretches, so that a reply of 32 tokens crosses the ends of some."""
    monkeypatch.setattr("core.layers.kv_stretch.STEP", 16)
