"""Latent attention in one call for few rows: transformers' tokens, and the own forward for everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import MOST_FEW, open_library
from core.layers import latent_attention, latent_layers
from core.layers.latent_layers import FusedLatent
from core.offload.host_weight import HostWeight
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, pieces, random_prompt
from tests.core.layers.fused import count_own, forwards
from tests.core.layers.test_expert_families import round_weights, store_in_bf16

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "kimi_linear")
PROMPT = random_prompt(30)


def fused(root: Any) -> list[FusedLatent]:
    return forwards(root, FusedLatent)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_transformers(family: str, tmp_path: Path) -> None:
    """With bf16 weights and fp32 activations, after a prefill by the layers' own forwards and after one by ours."""
    make_model(family, tmp_path)
    round_weights(tmp_path)
    expected = reference_tokens(tmp_path, PROMPT, 48)
    path = GreedyPath(tmp_path)
    store_in_bf16(path.module)
    latent_attention.adopt(path.module)
    latent_layers.adopt(path.module)
    layers = fused(path.module)
    counted = count_own(layers)
    assert len(layers) == (2 if family == "kimi_linear" else 3)
    assert path.tokens(PROMPT, 48) == expected
    assert counted == [len(PROMPT)] * len(layers)
    if path.cache.can_rewind:
        path.cache.reset()
        for part in list(pieces(PROMPT, MOST_FEW))[:-1]:
            path.model.forward(part, path.cache)
        assert path.tokens(PROMPT, 48) == expected
        assert counted[len(layers) :] == [MOST_FEW] * len(layers), "only the first pass, before which nothing is kept"
    latent_layers.release(path.module)
    assert not fused(path.module)


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["deepseek_v2", "glm4_moe_lite"])
def test_formats_that_our_library_multiplies(family: str, format: Any, tmp_path: Path) -> None:
    make_model(family, tmp_path, torch.bfloat16)
    path = GreedyPath(tmp_path, replace(OPTIONS, format=format))
    layers = fused(path.module)
    own = count_own(layers)
    assert len(layers) == 3
    ours = path.tokens(PROMPT, 8)
    assert own == [len(PROMPT)] * 3
    latent_layers.release(path.module)
    path.cache.reset()
    assert path.tokens(PROMPT, 2) == ours[:2]


def test_states_that_are_packed_are_left_to_the_layers_own(tmp_path: Path) -> None:
    make_model("deepseek_v3", tmp_path, torch.bfloat16)
    path = GreedyPath(tmp_path, replace(OPTIONS, format="int8", kv="int8"))
    own = count_own(fused(path.module))
    path.tokens(PROMPT, 4)
    assert own == [len(PROMPT)] * 3 + [1] * 9


@pytest.mark.skipif(len(instruction_sets()) < 2, reason="this processor supports a single instruction set")
def test_one_row_may_be_faster_with_another_instruction_set_than_the_rows_of_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("deepseek_v3", tmp_path, torch.bfloat16)
    path = GreedyPath(tmp_path, replace(OPTIONS, format="int8"))
    few, one = (open_library(isa) for isa in instruction_sets()[:2])
    monkeypatch.setattr(HostWeight, "library", lambda self, rows: one if rows == 1 else few)
    latent_layers.adopt(path.module)
    own = count_own(fused(path.module))
    for part in (PROMPT, [3], PROMPT[:4], PROMPT[:MOST_FEW]):
        path.model.forward(part, path.cache)
    assert own == [len(PROMPT)] * 3
