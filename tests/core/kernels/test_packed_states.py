"""Keys and values of 8 bits: their error, compiled and by torch, and unusual numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.kernels import packed_states
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import open_library
from core.kernels.packed_states import pack, widen
from core.kernels.packed_width import PACKED, packed_width, unpacked

MOST_ERROR = 0.008
"""Relative error of ordinary numbers: groups of 32 are rounded to 1/127 of the largest."""


@pytest.fixture(params=["compiled", "torch"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(packed_states, "native", lambda: None)


def there_and_back(states: Tensor, *, mixed: bool) -> Tensor:
    packed = torch.zeros((*states.shape[:2], 90, packed_width(states.shape[3])), dtype=PACKED)
    part = packed[:, :, 10 : 10 + states.shape[2]]
    pack(states, part, mixed=mixed)
    return widen(part, states.dtype, mixed=mixed)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def test_the_width_of_a_packed_row_says_how_many_columns_it_has() -> None:
    assert [unpacked(packed_width(columns)) for columns in range(1, 1200)] == list(range(1, 1200))
    assert packed_width(64) == 68
    assert packed_width(128) == 136


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [8, 33, 64, 80, 128, 256])
@pytest.mark.parametrize("mixed", [False, True])
def test_ordinary_numbers_lose_less_than_a_hundredth(dtype: torch.dtype, columns: int, mixed: bool) -> None:
    states = torch.randn(1, 3, 70, columns).to(dtype)
    found = there_and_back(states, mixed=mixed)
    assert found.dtype is dtype
    assert error(found, states) < MOST_ERROR


@pytest.mark.usefixtures("_library")
def test_a_few_large_columns_do_not_spoil_keys() -> None:
    """Real keys have such columns, and their small ones distinguish the tokens."""
    states = torch.randn(1, 2, 50, 64)
    states[..., 5], states[..., 40] = states[..., 5] * 40, states[..., 40] * 25
    small = [column for column in range(64) if column not in (5, 40)]
    mixed, plain = there_and_back(states, mixed=True), there_and_back(states, mixed=False)
    assert error(mixed, states) < MOST_ERROR
    assert error(mixed[..., small], states[..., small]) < 0.5 * error(plain[..., small], states[..., small])


@pytest.mark.usefixtures("_library")
def test_nothing_stays_nothing_and_what_is_broken_stays_visible() -> None:
    states = torch.randn(1, 2, 4, 64)
    states[0, 0, 1] = 0
    states[0, 1, 2, 3] = torch.nan
    states[0, 1, 3, 60] = torch.inf
    found = there_and_back(states, mixed=False)
    assert not found[0, 0, 1].any()
    assert found[0, 1, 2, :32].isnan().all()
    assert found[0, 1, 2, 32:].isfinite().all()
    assert not found[0, 1, 3, 32:].isfinite().any()
    assert there_and_back(torch.full((1, 1, 1, 64), 1e-38), mixed=True).isfinite().all()


def test_compiled_and_torch_pack_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(1, 4, 60, 128).transpose(1, 2).contiguous().transpose(1, 2)
    ours, theirs = (torch.zeros(1, 4, 60, packed_width(128), dtype=PACKED) for _ in range(2))
    pack(states, ours, mixed=True)
    monkeypatch.setattr(packed_states, "native", lambda: None)
    pack(states, theirs, mixed=True)
    assert float((ours != theirs).float().mean()) < 0.001


@pytest.mark.parametrize("name", instruction_sets())
def test_every_instruction_set_packs_alike(name: str) -> None:
    states = torch.randn(1, 3, 200, 96).bfloat16()
    found, wanted = (torch.zeros(1, 3, 200, packed_width(96), dtype=PACKED) for _ in range(2))
    open_library(name).pack(states, found, mixed=True)
    open_library(instruction_sets()[0]).pack(states, wanted, mixed=True)
    assert float((found != wanted).float().mean()) < 0.001
    floats = torch.empty_like(states)
    open_library(name).widen(found, floats, mixed=True)
    assert error(floats, states) < MOST_ERROR
