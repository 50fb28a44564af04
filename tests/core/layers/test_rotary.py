"""Rotary angles are computed in one thread, with unchanged results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.model.language_model import LanguageModel
from tests.core.families import make_model
from tests.core.greedy import GreedyPath


@pytest.fixture(params=["llama", "gemma4_text"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GreedyPath]:
    """Return a model in a process of two threads; Gemma has angles of two kinds."""
    before = torch.get_num_threads()
    made = GreedyPath(make_model(request.param, tmp_path))
    torch.set_num_threads(2)
    yield made
    torch.set_num_threads(before)


def test_angles_are_made_in_the_calling_thread(path: GreedyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, plain = list[int](), Tensor.cos

    def watched(x: Tensor) -> Tensor:
        threads.append(torch.get_num_threads())
        return plain(x)

    monkeypatch.setattr(Tensor, "cos", watched)
    path.model.forward([5, 6, 7], path.cache)
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2


def test_a_module_is_wrapped_once_and_fails_as_before(path: GreedyPath) -> None:
    rotary: Any = path.module.base_model.rotary_emb
    wrapped = rotary.forward
    LanguageModel(path.module)
    assert rotary.forward is wrapped
    with pytest.raises(TypeError):
        rotary(None, None)
    assert torch.get_num_threads() == 2
