"""Keys and values of 8 bits that lie in RAM while the second device computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.layers.kv_packed import PackedLayer
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
