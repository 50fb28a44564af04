"""Layers that the CPU computes entirely, beside those on the second device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.events import LoadOptions
from core.kernels.native_abi import instruction_sets
from core.layers.fused_forward import FusedForward
from tests.core.families import make_model
from tests.core.greedy import loaded_model
from tests.core.layers.test_cpu_layers import CARD, LAYERS, answers, with_host_layers
from tests.core.second_device import SecondDevice, put_in
from tests.core.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")


MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
SIDED = {"enable_moe_block": False, "hidden_size_per_layer_input": 8}


@pytest.mark.parametrize(
    ("family", "changes"),
    [(family, {}) for family in ("llama", "gemma3_text", "phi3", "glm4", "ministral3", "llama4_text")]
    + [("cohere2", MIXED), ("gemma4_text", SIDED)],
)
def test_they_say_what_they_would_on_the_card(
    second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any]
) -> None:
    put_in(second, monkeypatch)
    used, own = list[int](), FusedForward.__call__
    monkeypatch.setattr(FusedForward, "__call__", lambda *args, **more: used.append(1) or own(*args, **more))
    made = write_tokenizer(make_model(family, tmp_path, num_hidden_layers=LAYERS, **changes))
    loaded = loaded_model(made, LoadOptions(format="int8", context=256, threads=1, simulate_gpu=CARD))
    loaded.move_to(with_host_layers(loaded, ()))
    expected = answers(loaded)
    for numbers in ((0,), (1, 2), (3,), (0, 1, 2, 3)):
        used.clear()
        loaded.move_to(with_host_layers(loaded, numbers))
        # The CPU's products round their input to 8 bits.
        assert torch.nn.functional.cosine_similarity(answers(loaded), expected).min() > 0.99
        assert len(used) == 4 * len(numbers), "all passes but the long one"
    loaded.close()
