"""Gated delta rule layers in one call per token: transformers' tokens, and the own forward for everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5

from core.kernels.native_abi import instruction_sets
from core.layers import delta_layers
from core.layers.delta_layers import FusedDelta
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, random_prompt
from tests.core.layers.fused import count_own, forwards
from tests.core.layers.test_expert_families import round_weights, store_in_bf16

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FAMILIES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
LINEAR_LAYERS = 3
PROMPT = random_prompt(30)


def fused(root: Any) -> list[FusedDelta]:
    return forwards(root, FusedDelta)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_transformers(family: str, tmp_path: Path) -> None:
    """With bf16 weights and fp32 activations: prefill by the layers' own forwards, each token by ours."""
    make_model(family, tmp_path)
    round_weights(tmp_path)
    expected = reference_tokens(tmp_path, PROMPT, 60)
    path = GreedyPath(tmp_path)
    store_in_bf16(path.module)
    delta_layers.adopt(path.module)
    layers = fused(path.module)
    counted = count_own(layers)
    assert len(layers) == LINEAR_LAYERS
    for _ in range(2):
        assert path.tokens(PROMPT, 60) == expected
    assert 1 not in counted
    delta_layers.release(path.module)
    assert not fused(path.module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text"])
def test_formats_that_our_library_multiplies(family: str, format: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    make_model(family, tmp_path, dtype)
    path = GreedyPath(tmp_path, replace(OPTIONS, format=format))
    layers = fused(path.module)
    assert len(layers) == (0 if format == "bf16" and dtype is torch.float32 else LINEAR_LAYERS)
    own = count_own(layers)
    ours = path.tokens(PROMPT, 8)
    assert 1 not in own
    delta_layers.release(path.module)
    path.cache.reset()
    assert path.tokens(PROMPT, 3) == ours[:3]


def test_a_layer_that_computes_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_qwen3_5.Qwen3_5RMSNormGated.forward

    def doubled(self: Any, x: Tensor, gate: Tensor) -> Tensor:
        result: Tensor = own(self, x, gate)
        return 2 * result

    monkeypatch.setattr(modeling_qwen3_5.Qwen3_5RMSNormGated, "forward", doubled)
    make_model("qwen3_5_text", tmp_path, torch.bfloat16)
    assert not fused(GreedyPath(tmp_path).module)
