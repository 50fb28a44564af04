"""States that lie in RAM while the second device computes: of 8 bits, and those of parked conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.layers.kv_packed import PackedLayer
from core.layers.kv_parking import ParkedPrefixes
from core.spec import RECENT_ROOM
from tests.core.offload.test_hetero_linear import Bench
from tests.core.second_device import SecondCard
from tests.core.second_device.placed import Placed
from tests.core.second_device.test_engine import thirds


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom"])
def test_packed_states_in_ram_say_what_those_on_the_card_say(card: SecondCard, tmp_path: Path, family: str) -> None:
    """Few tokens, more than are kept unpacked, and models' own attention."""
    bench, found = Bench(family, tmp_path), []
    prompt = (bench.prompt * 4)[: RECENT_ROOM + 20]
    for kv_on_device in (True, False):
        plan = replace(thirds(bench.spec, 0, kv_on_device=kv_on_device), kv="int8")
        placed = Placed(bench, card, plan)
        passes = [prompt[:20], prompt, [5], [6, 7, 8]]
        found.append(torch.cat([placed.model.forward(ids, placed.cache, keep=1) for ids in passes]))
        assert any(isinstance(layer, PackedLayer) for layer in placed.cache.layers)
        assert bool(placed.cache.away) == kv_on_device
        placed.placement.close()
    assert torch.nn.functional.cosine_similarity(found[0], found[1]).min() > 0.9999
    card.close()


@pytest.mark.parametrize("family", ["qwen3_next", "mamba2"])
def test_recurrent_states_are_parked_and_come_back(card: SecondCard, tmp_path: Path, family: str) -> None:
    """They wait in RAM, and lie on the card again, also in a cache that has not been used."""
    bench, parked = Bench(family, tmp_path), ParkedPrefixes(1 << 24)
    plan = thirds(bench.spec, 0, kv_on_device=True)
    model, placement, cache = bench.placed(plan, card)
    text = bench.prompt * 3
    model.forward(text, cache)
    used = card.memory().used
    parked.switch(cache, [9, 8, 7], 0, card.device)
    assert card.memory().used == used
    expected = model.forward([5], cache)
    fresh = placement.make_cache(model.module.config, plan)
    parked.switch(fresh, [*text, 5], 0, card.device)
    assert fresh.tokens == text
    torch.testing.assert_close(model.forward([5], fresh), expected, rtol=1e-4, atol=1e-4)
    placement.close()
    card.close()
