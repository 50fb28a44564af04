"""Attention to compressed keys and values without expansion: transformers' tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.minicpm3 import modeling_minicpm3

from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import MOST_FEW
from core.kernels.quantize import quantize
from core.layers import attention, latent_attention
from core.layers.kv_layers import PreallocatedLayer
from core.layers.latent_attention import Expansion
from core.layers.latents import Latents, LatentStates, beside
from core.planning.memory_budget import host_workspace, load_peak
from core.spec import Plan, Rows
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, loaded_model, random_prompt
from tests.core.layers.test_expert_families import round_weights, store_in_bf16
from tests.core.second_device import SecondDevice, put_in
from tests.core.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "kimi_linear")
TOKENS = 40
PROMPT = random_prompt(30)


def expansions(root: Any) -> list[Any]:
    """Return the modules that defer the expansion."""
    return [module for module in root.modules() if isinstance(vars(module).get("expand_kv"), Expansion)]


def count_expanded(modules: list[Any]) -> list[int]:
    """Count the tokens of each expansion to keys and values."""
    counted: list[int] = []

    def counting(own: Callable[..., Any]) -> Callable[..., Any]:
        def expand(rows: Tensor, turned: Tensor) -> Any:
            counted.append(rows.shape[2])
            return own(rows, turned)

        return expand

    for module in modules:
        module.expand_kv.own = counting(module.expand_kv.own)
    return counted


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_transformers(family: str, stored: str, tmp_path: Path) -> None:
    """By torch from fp32 weights, and by our library from bf16 weights with fp32 activations."""
    make_model(family, tmp_path)
    round_weights(tmp_path)
    expected = reference_tokens(tmp_path, PROMPT, TOKENS)
    path = GreedyPath(tmp_path)
    if stored == "bf16":
        store_in_bf16(path.module)
        latent_attention.adopt(path.module)
    modules = expansions(path.module)
    counted = count_expanded(modules)
    assert path.tokens(PROMPT, TOKENS) == expected
    assert counted == [len(PROMPT)] * len(modules), "only the prompt's pass makes keys and values"
    latent_attention.release(path.module)
    assert len(modules) > 0 == len(expansions(path.module))


def test_the_newest_tokens_of_a_packed_cache(tmp_path: Path) -> None:
    make_model("deepseek_v3", tmp_path)
    expected = reference_tokens(tmp_path, PROMPT[:10], 12)
    path = GreedyPath(tmp_path, replace(OPTIONS, kv="int8"))
    counted = count_expanded(expansions(path.module))
    assert path.tokens(PROMPT[:10], 12) == expected
    assert set(counted) == {10}


def test_beside_a_card(second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents lie on the card; the CPU has rows of the projection, and therefore all weights of each head."""
    put_in(second, monkeypatch)
    make_model("deepseek_v3", tmp_path)
    expected = reference_tokens(tmp_path, PROMPT, 12)
    write_tokenizer(tmp_path)
    model = loaded_model(tmp_path, replace(OPTIONS, simulate_gpu="vram=2GiB,link=4GB/s"))
    for kept in (True, False):
        plan = model.plan if kept else without_residents(model.plan, "kv_b_proj")
        model.move_to(plan)
        model.cache.reset()
        counted = count_expanded(expansions(model.model.module))
        drawn, given = [], PROMPT
        for _ in range(12):
            drawn.append(int(model.model.forward(given, model.cache).reshape(-1).argmax()))
            given = drawn[-1:]
        assert drawn == expected
        assert (counted == [len(PROMPT)] * 3) is not kept
    model.close()


def without_residents(plan: Plan, name: str) -> Plan:
    """Return the plan with all linears of that name on the CPU."""
    linears = (
        replace(one, shares=tuple(Rows(0, 0, one.rows) for _ in one.shares)) if one.name.endswith(name) else one  # type: ignore[arg-type]
        for one in plan.linears
    )
    return replace(plan, linears=tuple(linears))


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, MOST_FEW])
def test_few_queries_see_what_keys_and_values_would_show(format: Any, rows: int, tmp_path: Path) -> None:
    make_model("minicpm3", tmp_path, dtype=torch.bfloat16)
    module = expansions(GreedyPath(tmp_path, replace(OPTIONS, format=format)).module)[0]
    torch.manual_seed(rows)
    latents = torch.randn(1, 1, 300, module.kv_lora_rank).bfloat16()
    turned = torch.randn(1, 1, 300, module.qk_rope_head_dim).bfloat16()
    query = torch.randn(1, module.num_heads, rows, module.qk_nope_head_dim + module.qk_rope_head_dim).bfloat16()
    mask = torch.ones(1, 1, rows, 300, dtype=torch.bool).tril(300 - rows)
    found, expected = (
        attention.attend(module, query, keys, values, mask)[0].float()
        for keys, values in (module.expand_kv(latents, turned), module.expand_kv.own(latents, turned))
    )
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize(("stored", "format"), [("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "int8"), ("bf16", "int4")])
def test_the_plan_counts_the_copies_of_keys_weights(
    stored: str, format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def made(weight: Tensor, storage: Any) -> Any:
        held.append(quantize(weight, storage))
        return held[-1]

    monkeypatch.setattr(latent_attention, "quantize", made)
    make_model("deepseek_v3", tmp_path, torch.bfloat16 if stored == "bf16" else torch.float32)
    write_tokenizer(tmp_path)
    model = loaded_model(tmp_path, replace(OPTIONS, format=format))
    uncounted = replace(model.spec, linears=tuple(replace(one, key_heads=0) for one in model.spec.linears))
    plan, nbytes = model.plan, sum(weight.nbytes for weight in held)
    assert (nbytes > 0) is (stored == "bf16")
    assert plan.memory[0].workspace - host_workspace(uncounted, plan.format, plan.prefill_chunk) == nbytes
    peaks = (load_peak(one, plan.format, 0, plan.prefill_chunk) for one in (model.spec, uncounted))
    assert next(peaks) - next(peaks) == nbytes
    model.close()


def test_states_that_are_put_off_are_floats_to_everything_else() -> None:
    def expand(rows: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((rows, turned), -1), 2 * rows

    rows, turned = torch.randn(1, 1, 4, 3), torch.randn(1, 1, 4, 2)
    nobody: Any = None
    keys, values = Latents(nobody, expand, rows, turned).states()
    assert isinstance(keys, LatentStates)
    assert keys.shape == (1, 1, 4, 5)
    assert torch.equal(values + 1, 2 * rows + 1)


def test_a_tokens_parts_lie_beside_each_other_wherever_they_lie() -> None:
    layer = PreallocatedLayer(8)
    latents, turned = torch.randn(1, 1, 3, 6), torch.randn(1, 1, 3, 2)
    for _ in range(2):
        if layer.is_initialized:
            layer.move(lambda shape, dtype: torch.zeros(tuple(shape), dtype=dtype))
        else:
            layer.update(latents, turned)
        rows, own = (states[:, :, : layer.length] for states in (layer.keys, layer.values))
        found = beside(rows, own)
        assert found is not None
        assert found.data_ptr() == layer.keys.data_ptr()
        assert torch.equal(found, torch.cat((latents, turned), -1))


def test_a_method_that_makes_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_minicpm3.MiniCPM3Attention.expand_kv

    def other(self: Any, rows: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = own(self, rows, turned)
        return keys, 2 * values

    monkeypatch.setattr(modeling_minicpm3.MiniCPM3Attention, "expand_kv", other)
    make_model("minicpm3", tmp_path)
    assert not expansions(GreedyPath(tmp_path).module)
