"""Recurrent layers in one call per token: transformers' tokens, and the own forward for everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.bamba import modeling_bamba
from transformers.models.lfm2 import modeling_lfm2
from transformers.models.qwen3_5 import modeling_qwen3_5

from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import open_library
from core.layers import delta_layers, fused_blocks, fused_recurrent, short_layers, state_layers
from core.layers.fused_recurrent import FusedRecurrent
from core.model.blueprint import decoder_layers
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, random_prompt
from tests.core.layers.fused import count_own, forwards
from tests.core.layers.test_expert_families import round_weights, store_in_bf16, vary_vectors

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
NORMED: dict[str, Any] = {"mamba_rms_norm": True, "mamba_n_groups": 2}
FACTORS: dict[str, Any] = {"ssm_in_multiplier": 1.25, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7]}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "qwen3_next": ("qwen3_next", 3, {}),
    "qwen3_5_text": ("qwen3_5_text", 3, {}),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", 3, {}),
    "granitemoehybrid": ("granitemoehybrid", 2, {"residual_multiplier": 0.5}),
    "granitemoehybrid, dense": ("granitemoehybrid", 2, {"num_local_experts": 0}),
    "bamba": ("bamba", 2, {"mamba_n_groups": 2}),
    "nemotron_h": ("nemotron_h", 1, {}),
    "mamba2": ("mamba2", 3, {}),
    "falcon_h1": ("falcon_h1", 3, FACTORS),
    "falcon_h1 gate, norm": ("falcon_h1", 3, NORMED | {"mamba_norm_before_gate": False}),
    "falcon_h1 norm, gate": ("falcon_h1", 3, NORMED | {"mamba_norm_before_gate": True}),
    "lfm2": ("lfm2", 2, {}),
    "lfm2_moe": ("lfm2_moe", 2, {}),
    "lfm3": ("lfm3", 2, {}),
    "lfm3 without norms behind": ("lfm3", 2, {"use_sandwich_norm": False, "use_attention_gate": False}),
}
"""Kinds of layers: a family, its number of recurrent layers, and changes to its configuration."""
PROMPT = random_prompt(30)


def fused(root: Any) -> list[FusedRecurrent]:
    return forwards(root, FusedRecurrent)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_same_tokens_as_transformers(kind: str, tmp_path: Path) -> None:
    path = check_tokens(kind, tmp_path, fused_recurrent.adopt, fused, FAMILIES[kind][1])
    fused_recurrent.release(path.module)
    assert not fused(path.module)


def check_tokens(
    kind: str, folder: Path, adopt: Callable[[Any], None], found: Callable[[Any], list[Any]], count: int
) -> GreedyPath:
    """Check that `count` layers are `found` after `adopt`, and that their tokens are those of transformers.

    With bf16 weights and fp32 activations: prefill by the layers' own forwards, each token by ours.
    """
    family, _, changes = FAMILIES[kind]
    make_model(family, folder, **changes)
    vary_vectors(folder)
    round_weights(folder)
    expected = reference_tokens(folder, PROMPT, 60)
    path = GreedyPath(folder)
    store_in_bf16(path.module)
    adopt(path.module)
    layers = found(path.module)
    counted = count_own(layers)
    assert len(layers) == count
    for _ in range(2):
        assert path.tokens(PROMPT, 60) == expected
    assert 1 not in counted
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["qwen3_next", "qwen3_5_text", "granitemoehybrid", "falcon_h1", "lfm2"])
def test_formats_that_our_library_multiplies(kind: str, format: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    family, count, changes = FAMILIES[kind]
    make_model(family, tmp_path, dtype, **changes)
    path = GreedyPath(tmp_path, replace(OPTIONS, format=format))
    fused_blocks.release(decoder_layers(path.module))
    layers = fused(path.module)
    assert len(layers) == (0 if format == "bf16" and dtype is torch.float32 else count)
    own = count_own(layers)
    ours = path.tokens(PROMPT, 8)
    assert 1 not in own
    fused_recurrent.release(path.module)
    path.cache.reset()
    assert path.tokens(PROMPT, 3) == ours[:3]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("kind", "room"), [("qwen3_5_text", delta_layers), ("lfm2", short_layers)])
def test_every_instruction_set_computes_layers_of_odd_sizes(
    kind: str, room: ModuleType, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compute_odd_sizes(FAMILIES[kind], {"hidden_size": 72}, room, isa, tmp_path, monkeypatch)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    "norm", [{}, {"mamba_rms_norm": True}, {"mamba_rms_norm": True, "mamba_norm_before_gate": False}]
)
def test_every_instruction_set_computes_mamba_2_of_odd_sizes(
    norm: dict[str, bool], isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 72, "mamba_d_ssm": 60, "mamba_d_head": 15, "mamba_d_state": 13}
    _compute_odd_sizes(FAMILIES["falcon_h1"], sizes | norm, state_layers, isa, tmp_path, monkeypatch)


def _compute_odd_sizes(
    family: tuple[str, int, dict[str, Any]], sizes: dict[str, Any], room: ModuleType, isa: str, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Load a model whose layers of one kind use this instruction set: they are ours only if they agree with torch."""
    name, count, changes = family
    monkeypatch.setattr(room, "common_library", lambda *_: open_library(isa))
    make_model(name, folder, torch.bfloat16, **(changes | sizes))
    vary_vectors(folder)
    path = GreedyPath(folder, replace(OPTIONS, format="int8"))
    assert len(fused(path.module)) == count


@pytest.mark.parametrize("kind", ["granitemoehybrid", "falcon_h1 gate, norm", "lfm2"])
def test_an_edited_turn_goes_on_from_the_states_of_its_mark(kind: str, tmp_path: Path) -> None:
    """After tokens by ours, the cache returns to a mark, and both readings of the rest give the same tokens."""
    family, _, changes = FAMILIES[kind]
    make_model(family, tmp_path, torch.bfloat16, **changes)
    path = GreedyPath(tmp_path, replace(OPTIONS, format="int8"))
    prompt = random_prompt(100)
    path.tokens(prompt, 20)
    edited = [*prompt[:-2], 9, 21]
    again = path.tokens(edited, 20)
    assert path.reused > 0
    path.cache.reset()
    assert path.tokens(edited, 20) == again


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [
        ("qwen3_5_text", modeling_qwen3_5, "Qwen3_5RMSNormGated"),
        ("bamba", modeling_bamba, "BambaRMSNormGated"),
    ],
)
def test_a_layer_with_another_norm_is_left_alone(
    kind: str, module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = getattr(module, name).forward

    def doubled(self: Any, x: Tensor, gate: Tensor) -> Tensor:
        result: Tensor = own(self, x, gate)
        return 2 * result

    monkeypatch.setattr(getattr(module, name), "forward", doubled)
    make_model(FAMILIES[kind][0], tmp_path, torch.bfloat16)
    assert not fused(GreedyPath(tmp_path).module)


def test_a_short_convolution_that_ends_differently_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = modeling_lfm2.Lfm2ShortConv.forward

    def doubled(self: Any, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return 2 * own(self, hidden_states, cache, attention_mask, **kwargs)

    monkeypatch.setattr(modeling_lfm2.Lfm2ShortConv, "forward", doubled)
    make_model("lfm2", tmp_path, torch.bfloat16)
    assert not fused(GreedyPath(tmp_path).module)


def test_projections_with_biases_are_left_alone(tmp_path: Path) -> None:
    make_model("lfm2", tmp_path, torch.bfloat16, conv_bias=True)
    path = GreedyPath(tmp_path)
    assert not fused(path.module)
    assert len(path.tokens(PROMPT, 3)) == 3
