"""Mixtures through classes of ours: transformers' tokens, and nothing read of the experts that no token chose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.events import LoadOptions
from core.kernels.native_abi import instruction_sets
from core.layers import moe
from core.layers.fused_forward import FusedForward
from core.layers.fused_mixtures import FusedMixture
from core.layers.trials import random_rows
from core.spec import Format
from tests.core.families import VOCABULARY, make_model, reference_tokens, save_random
from tests.core.greedy import GreedyPath, random_prompt, transformers_tokens
from tests.core.layers.fused import count_own, forwards
from tests.core.layers.test_expert_families import round_weights, store_in_bf16

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
TOKENS, EXPERTS = 40, 64
SCALED_FROM = 63
SCOUT = {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0], "floor_scale": SCALED_FROM + 1, "attn_scale": 0.5}
MAVERICK = {**SCOUT, "use_qk_norm": False, "interleave_moe_layer_step": 2}
"""The smaller one has norms of queries and keys, the larger one dense layers between mixtures; both have layers without
positions, whose queries are scaled from a position on that replies of these tests cross."""


def path_of(folder: Path, **changes: Any) -> GreedyPath:
    """Return the path of a tiny Llama 4 that is stored in bf16 and computed in fp32."""
    make_model("llama4_text", folder, **changes)
    round_weights(folder)
    path = GreedyPath(folder)
    store_in_bf16(path.module)
    return path


@pytest.mark.parametrize("changes", [SCOUT, MAVERICK], ids=["scout", "maverick"])
def test_the_same_tokens_across_chunks_and_where_queries_become_scaled(changes: dict[str, Any], tmp_path: Path) -> None:
    path, prompt = path_of(tmp_path, **changes), random_prompt(SCALED_FROM - 20)
    fused = forwards(path.module, FusedForward)
    assert len(fused) == 4
    own = count_own(fused)
    assert path.tokens(prompt, TOKENS) == reference_tokens(tmp_path, prompt, TOKENS)
    assert own.count(1) == 2 * (len(prompt) + TOKENS - 1 - SCALED_FROM), "layers without positions behind that one"


def test_each_token_may_choose_several_experts(tmp_path: Path) -> None:
    """Which no published Llama 4 does, but its configuration allows; our one call for a token does not take it."""
    path, prompt = path_of(tmp_path, num_experts_per_tok=2), random_prompt(40)
    assert not forwards(path.module, FusedMixture)
    assert path.tokens(prompt, TOKENS) == reference_tokens(tmp_path, prompt, TOKENS)


STEP: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 48, "share_expert_dim": 48, "sliding_window": 24,
    "layer_types": ["full_attention", "sliding_attention"] * 2, "mlp_layer_types": ["dense", *["sparse"] * 3],
    "swiglu_limits": [0.0, 0.0, 0.4, 0.0], "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
    },
}  # fmt: skip
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}


def test_a_loop_over_experts_is_planned_and_computed_like_any_mixture(tmp_path: Path) -> None:
    """Step 3.7, whose third layer limits what its experts make of gate and up."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["step3p7"](text_config=STEP, vision_config=EYES)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    save_random(model, tmp_path)
    path, prompt = GreedyPath(tmp_path), random_prompt(40)
    assert sum(bool(moe.linears_of(module)) for module in path.module.modules()) == 3
    assert path.tokens(prompt, TOKENS) == transformers_tokens(model, prompt, TOKENS)


def blocks_of(folder: Path, format: Format) -> list[Any]:
    """Return the mixtures of a model as it is loaded in this format."""
    root = GreedyPath(folder, LoadOptions(format=format, context=256, threads=1)).module
    return [block for block in root.modules() if any(moe.linears_of(child) for child in block.children())]


def poison(folder: Path, chosen: list[set[int]]) -> None:
    """Make the weights of all experts but the chosen ones of each layer NaN."""
    for file in folder.glob("*.safetensors"):
        tensors = load(file.read_bytes())
        for name, tensor in tensors.items():
            if ".experts." in name:
                numbers = chosen[int(re.findall(r"layers\.(\d+)\.", name)[0])]
                tensor[[number for number in range(EXPERTS) if number not in numbers]] = torch.nan
        save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_nothing_is_read_of_the_experts_that_no_token_chose(format: Format, rows: int, tmp_path: Path) -> None:
    make_model("llama4_text", tmp_path, torch.bfloat16, num_local_experts=EXPERTS)
    x = random_rows([1.0] * rows, 64, torch.bfloat16)[None]
    with torch.inference_mode():
        sound = blocks_of(tmp_path, format)
        expected = [block(x)[0] for block in sound]
        chosen = [set(block.router(x[0])[2].flatten().tolist()) for block in sound]
        poison(tmp_path, chosen)
        found = [block(x)[0] for block in blocks_of(tmp_path, format)]
    assert len(expected) == 3
    assert all(map(torch.equal, found, expected))
    assert all(one.isfinite().all() for one in found)
