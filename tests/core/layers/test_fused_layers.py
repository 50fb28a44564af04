"""Layers in two calls: found in the families that have them, not in others, with the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.errors import ModelFailed
from core.events import LoadOptions
from core.kernels.native_abi import instruction_sets
from core.kernels.native_layer import NativeLayer, Turning
from core.kernels.native_library import AttentionCall, open_library
from core.layers import fused_layers
from core.layers.fused_forward import FusedForward, Make
from core.layers.kv_cache import KVCache
from core.layers.layer_parts import parts_of
from core.model.blueprint import decoder_layers
from core.model.placement import DevicePlacement, HostPlacement
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import HostWeight
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.spec import Format
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt
from tests.core.layers.fused import PROMPT, count_own, forwards, load
from tests.core.layers.test_expert_families import round_weights, store_in_bf16, vary_vectors
from tests.core.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FUSED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2", "mixtral", "qwen3_moe", "gpt_oss")
FUSED += ("granite", "granitemoe", "qwen2_moe", "glm4_moe", "phi3", "smollm3", "exaone4")
FUSED += ("glm", "glm4", "ernie4_5", "hunyuan_v1_dense", "ministral3", "gemma2", "cohere2", "llama4_text")
PARTLY = {"lfm2": [False, True, False], "lfm2_moe": [False, True, False], "lfm3": [False, True, False]}
PARTLY |= {family: [False, False, False, True] for family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")}
"""Families with layers of several kinds, and which of them are fused."""
SCALED_FROM = 256
"""The first position at which the tests' Ministral 3 scales queries."""
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")


def layers_of(path: GreedyPath) -> list[nn.Module]:
    return decoder_layers(path.module)


def fused(path: GreedyPath) -> list[bool]:
    return [isinstance(vars(layer).get("forward"), FusedForward) for layer in layers_of(path)]


def logits(path: GreedyPath, parts: list[list[int]]) -> Tensor:
    cache = KVCache(path.module.config, 256)
    return torch.stack([path.model.forward(part, cache)[-1] for part in parts])


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the layer's own forward was called")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", [*FUSED, *PARTLY])
def test_the_same_logits_as_with_the_layers_own_forward(
    family: str, format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = load(family, tmp_path, format)
    assert fused(path) == PARTLY.get(family, [True] * len(layers_of(path)))
    # Exceeds Mistral's window of 24; several tokens at once as in speculative decoding.
    parts = [PROMPT, *([token] for token in PROMPT * 2), PROMPT[:5], PROMPT[:8], [1], PROMPT[:2]]
    found = logits(path, parts)
    with monkeypatch.context() as patch:
        for forward in forwards(path.module, FusedForward):
            patch.setattr(forward, "own", refuse)
        with pytest.raises(ModelFailed, match="own forward"):
            logits(path, parts)
        patch.setattr(fused_layers, "MOST_FEW", 1)
        logits(path, [[token] for token in PROMPT])
    fused_layers.release(layers_of(path))
    assert not any(fused(path))
    expected = logits(path, parts)
    # Passes of 5 to 8 rows multiply in panels there: another order of summation rounds bf16 differently.
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(
    ("family", "turning"),
    [
        ("qwen2", Turning()),
        ("glm4", Turning(14, neighbours=True)),
        ("hunyuan_v1_dense", Turning(first=True)),
        ("qwen3_5_text", Turning()),
        ("lfm3", Turning(exact=True)),
        ("llama4_text", Turning(neighbours=True, exact=True, first=True)),
        ("cohere2", Turning(neighbours=True, exact=True, in_order=True)),
    ],
)
def test_every_instruction_set_computes_a_layer_of_odd_sizes(
    family: str, turning: Turning, isa: str, dtype: torch.dtype, rows: int, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 84, "intermediate_size": 101, "head_dim": 14, "num_attention_heads": 6}
    whole = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    if family == "llama4_text":  # its last layer is then a dense one
        sizes |= {"intermediate_size_mlp": 101, "interleave_moe_layer_step": 2}
    path = load(family, tmp_path, "int8", dtype, **sizes, rope_parameters={"full_attention": whole} | whole)
    layer: Any = next(one for one in reversed(layers_of(path)) if hasattr(one, "self_attn"))
    fused_layers.release([layer])
    native = NativeLayer(open_library(isa), parts_of(layer, Make("silu", half_angles=False, turning=turning)), dtype)
    x = torch.randn(1, rows, 84).to(dtype)
    angles = torch.randn(1, rows, 7).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
    query, key, value = native.begin(x, cos, sin)
    found = native.end(x, AttentionCall(query, key, value, mask, None, 14**-0.5, 0.0))
    with torch.inference_mode():
        given = (cos[..., :7], sin[..., :7]) if family == "llama4_text" else (cos, sin)
        expected = layer(x, attention_mask=mask, position_embeddings=given)
    # Both read inputs quantised to 8 bits, which may fall on either side of a rounding step.
    # LFM3's norms behind its parts enlarge such a step.
    assert (found - expected).abs().max() <= (0.02 if family == "lfm3" else 0.01) * (expected - x).abs().max()
    x[0, rows - 1, 5] = torch.nan
    query, key, value = native.begin(x, cos, sin)
    broken = native.end(x, AttentionCall(query, key, value, mask, None, 14**-0.5, 0.0))
    assert broken[0, rows - 1].isnan().all()


@pytest.mark.parametrize("family", ["falcon", "gpt_neox", "deepseek_v3", "opt"])
def test_other_layers_are_left_alone(family: str, tmp_path: Path) -> None:
    assert not any(fused(load(family, tmp_path)))


def test_what_a_layer_computes_decides_and_not_its_class(tmp_path: Path) -> None:
    assert all(fused(load("granite", tmp_path / "plain", residual_multiplier=1.0)))
    assert all(fused(load("llama", tmp_path / "gelu", hidden_act="gelu_pytorch_tanh")))
    assert not any(fused(load("llama", tmp_path / "relu", hidden_act="relu")))
    assert not any(fused(load("llama", tmp_path / "biased", mlp_bias=True)))
    assert all(fused(load("llama", tmp_path / "attention", attention_bias=True)))


def test_queries_are_scaled_where_the_model_scales_them(tmp_path: Path) -> None:
    """Ministral 3 scales queries behind a position, here in the middle of the reply: its own layers compute those."""
    make_model("ministral3", tmp_path)
    round_weights(tmp_path)
    prompt = random_prompt(SCALED_FROM - 10)
    expected = reference_tokens(tmp_path, prompt, 20)
    path = GreedyPath(tmp_path)
    store_in_bf16(path.module)
    own = count_own(forwards(path.module, FusedForward))
    assert all(fused(path))
    assert path.tokens(prompt, 20) == expected
    assert own.count(1) == 9 * len(layers_of(path)), "each token behind the position"


@pytest.mark.parametrize(("family", "changes"), [("cohere", {"use_qk_norm": False}), ("cohere2", {})])
def test_an_mlp_beside_attention_gives_the_tokens_of_transformers(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    make_model(family, tmp_path, **changes)
    round_weights(tmp_path)
    vary_vectors(tmp_path)
    prompt = random_prompt(40)
    expected = reference_tokens(tmp_path, prompt, 40)
    path = GreedyPath(tmp_path)
    store_in_bf16(path.module)
    own = count_own(forwards(path.module, FusedForward))
    assert all(fused(path))
    assert path.tokens(prompt, 40) == expected
    assert 1 not in own


def test_a_pass_past_transformers_forward_heeds_scaled_queries(tmp_path: Path) -> None:
    make_model("ministral3", tmp_path, torch.bfloat16)
    prompt = random_prompt(SCALED_FROM - 10)
    path = GreedyPath(tmp_path)
    path.model.rehearse("bf16")
    assert path.model.placement.straight is not None
    assert path.model.placement.straight.proven
    own = count_own(forwards(path.module, FusedForward))
    found = path.tokens(prompt, 20)
    assert own.count(1) == 9 * len(layers_of(path))
    fused_layers.release(layers_of(path))
    path.cache.reset()
    assert path.tokens(prompt, 12) == found[:12]


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_a_card_that_takes_over_gets_layers_that_use_it(family: str, tmp_path: Path) -> None:
    write_tokenizer(make_model(family, tmp_path, dtype=torch.bfloat16))
    *_, loaded = load_model(tmp_path, LoadOptions(format="int8", context=256))
    assert isinstance(loaded, LoadedModel)
    layers, device = (
        decoder_layers(loaded.source.module),
        SimulatedAccelerator(parse_simulation("vram=1GiB,link=1GB/s")),
    )
    assert all("forward" in vars(layer) for layer in layers)
    placement = DevicePlacement(loaded.source.module, loaded.weights, loaded.plan, device, loaded.spec.kv_layers)
    assert not any("forward" in vars(layer) for layer in layers)
    placement.close()
    device.close()
    HostPlacement(loaded.source.module, loaded.weights)
    assert all("forward" in vars(layer) for layer in layers)


@pytest.mark.skipif(len(instruction_sets()) < 2, reason="this processor supports a single instruction set")
def test_a_layer_that_was_measured_faster_with_another_instruction_set_stays_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = load("llama", tmp_path, num_hidden_layers=4)
    parts = [PROMPT, [1], [2], PROMPT[:3], PROMPT[:3]]
    expected = logits(path, parts)
    most, other = (open_library(isa) for isa in instruction_sets()[:2])
    odd = {module.host for module in layers_of(path)[1].modules() if isinstance(module, HostLinear)}
    monkeypatch.setattr(HostWeight, "library", lambda self, rows: other if self in odd else most)
    fused_layers.release(layers_of(path))
    runs = fused_layers.adopt(layers_of(path))
    assert [len(run) for run in runs] == [4]
    assert logits(path, parts).equal(expected)
