"""A KV cache on a device is mirrored in RAM: the same states, and only new ones are copied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import Simulation
from core.errors import DeviceLost
from core.layers.kv_cache import KVCache
from core.layers.kv_mirror import AT_ONCE, MirroredCache
from core.model.model_source import open_source
from tests.core.families import make_model
from tests.core.second_device import SecondCard

HEADS, WIDTH = 2, 4


@pytest.fixture
def config(tmp_path: Path) -> object:
    return open_source(make_model("llama", tmp_path)).module.config


@pytest.fixture(params=["simulated", "second"])
def card(request: pytest.FixtureRequest) -> SimulatedAccelerator | SecondCard:
    if request.param == "simulated":
        return SimulatedAccelerator(Simulation(64 << 20, 10e9))
    return SecondCard(request.getfixturevalue("second"))


@torch.inference_mode()
def read(cache: KVCache, ids: list[int]) -> None:
    """Append states that tell tokens and layers apart, as a pass would."""
    for number, layer in enumerate(cache.layers):
        keys = torch.tensor(ids, dtype=torch.float).view(1, 1, -1, 1).expand(1, HEADS, -1, WIDTH) + 1000 * number
        layer.update(keys.contiguous(), -keys)
    cache.tokens += ids


def states(cache: KVCache) -> list[torch.Tensor]:
    return [one[:, :, : len(cache.tokens)].cpu() for layer in cache.layers for one in layer.tensors]


def check_equal(cache: KVCache, source: KVCache) -> None:
    assert cache.tokens == source.tokens
    assert all(map(torch.equal, states(cache), states(source)))


@pytest.mark.parametrize("away", [(0, 1), (1,)])
def test_the_copy_follows_what_is_added_and_taken_back(
    away: tuple[int, ...], config: object, card: SimulatedAccelerator | SecondCard
) -> None:
    source = KVCache(config, 128, dict.fromkeys(away, card.empty))
    mirrored = MirroredCache(source, KVCache(config, 128), card)
    read(source, list(range(AT_ONCE + 9)))
    check_equal(mirrored.current(), source)
    read(mirrored.current(), [77, 78])  # drafted tokens
    source.rewind(30)
    read(source, [5, 6])
    copy = mirrored.current()
    assert copy is not source
    check_equal(copy, source)


def test_only_new_tokens_are_copied(config: object, card: SimulatedAccelerator | SecondCard) -> None:
    source = KVCache(config, 128, dict.fromkeys((0, 1), card.empty))
    mirrored = MirroredCache(source, KVCache(config, 128), card)
    read(source, list(range(20)))
    with torch.inference_mode():
        mirrored.current().layers[0].keys[:, :, :20] = 7.0
    read(source, [4])
    copy = mirrored.current()
    assert bool((copy.layers[0].keys[:, :, :20] == 7.0).all())
    assert torch.equal(copy.layers[0].keys[:, :, 20], source.layers[0].keys[:, :, 20].cpu())


def test_what_lies_in_ram_is_used_as_it_is_and_moves_are_followed(
    config: object, card: SimulatedAccelerator | SecondCard
) -> None:
    source = KVCache(config, 128)
    mirrored = MirroredCache(source, KVCache(config, 128), card)
    read(source, [1, 2, 3])
    assert mirrored.current() is source
    source.move({0: card.empty, 1: card.empty})
    check_equal(mirrored.current(), source)
    assert mirrored.current() is not source


def test_a_lost_device_is_reported(config: object, card: SimulatedAccelerator | SecondCard) -> None:
    source = KVCache(config, 128, {0: card.empty})
    mirrored = MirroredCache(source, KVCache(config, 128), card)
    read(source, [1, 2, 3])
    card.lose()
    with pytest.raises(DeviceLost):
        mirrored.current()
