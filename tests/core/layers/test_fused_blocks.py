"""Decoder layers with recurrent layers in one call per token: transformers' tokens, and the own forward otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.lfm2 import modeling_lfm2

from core.kernels.native_abi import instruction_sets
from core.layers import fused_blocks, fused_recurrent
from core.layers.fused_blocks import FusedBlock
from core.model.blueprint import decoder_layers
from tests.core.families import make_model
from tests.core.greedy import OPTIONS, GreedyPath
from tests.core.layers.fused import count_own, forwards
from tests.core.layers.test_fused_recurrent import FAMILIES, PROMPT, check_tokens

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
BESIDE_ATTENTION = {kind for kind in FAMILIES if kind.startswith("falcon_h1")}
BLOCKS = {kind: 0 if kind in BESIDE_ATTENTION else count for kind, (_, count, _) in FAMILIES.items()}
"""The number of fused layers by kind; Falcon-H1's also have attention."""


def fused(root: Any) -> list[FusedBlock]:
    return forwards(root, FusedBlock)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_same_tokens_as_transformers(kind: str, tmp_path: Path) -> None:
    path = check_tokens(kind, tmp_path, adopt, fused, BLOCKS[kind])
    fused_blocks.release(decoder_layers(path.module))
    assert not fused(path.module)


def adopt(root: Any) -> None:
    fused_recurrent.adopt(root)
    fused_blocks.adopt(decoder_layers(root))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_5_moe_text", "granitemoehybrid", "lfm2", "lfm2_moe"])
def test_formats_that_our_library_multiplies(kind: str, format: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    family, _, changes = FAMILIES[kind]
    make_model(family, tmp_path, dtype, **changes)
    path = GreedyPath(tmp_path, replace(OPTIONS, format=format))
    layers = fused(path.module)
    assert len(layers) == (0 if format == "bf16" and dtype is torch.float32 else BLOCKS[kind])
    own = count_own(layers)
    ours = path.tokens(PROMPT, 8)
    assert 1 not in own
    fused_blocks.release(decoder_layers(path.module))
    path.cache.reset()
    assert path.tokens(PROMPT, 3) == ours[:3]


def test_a_layer_that_adds_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_lfm2.Lfm2DecoderLayer.forward

    def doubled(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
        return own(self, hidden_states, **kwargs) + hidden_states

    monkeypatch.setattr(modeling_lfm2.Lfm2DecoderLayer, "forward", doubled)
    make_model("lfm2", tmp_path, torch.bfloat16)
    assert not fused(GreedyPath(tmp_path).module)
