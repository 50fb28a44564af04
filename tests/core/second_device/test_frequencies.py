"""Two sets of frequencies (longrope) on the second device: a captured pass uses the one for the whole text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.offload.test_hetero_linear import TOKENS, Bench
from tests.core.second_device import SecondCard
from tests.core.second_device.placed import PLANS, Placed

pytestmark = pytest.mark.skipif(not hasattr(torch.accelerator, "Graph"), reason="this torch has no graphs for all")


@pytest.mark.parametrize("plan", PLANS)
def test_a_text_that_becomes_long_is_read_anew_with_the_other_set(card: SecondCard, tmp_path: Path, plan: str) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 48}
    sets = {"short_factor": [1.0] * 8, "long_factor": [float(factor) for factor in range(1, 17, 2)]}
    bench = Bench("phi3", tmp_path, rope_parameters=rope | sets, original_max_position_embeddings=48)
    placed = Placed(bench, card, PLANS[plan](bench.spec, True))
    assert list(placed.draw(bench.prompt, TOKENS)) == bench.expected
    placed.close(card)
