"""Experts of a layer in one call: found in the families that have them, with the same results as the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import parse_simulation
from core.errors import ModelFailed
from core.events import LoadOptions
from core.kernels.native_abi import instruction_sets
from core.layers import fused_experts, fused_mixtures, fused_routers, moe
from core.layers.fused_experts import FusedExperts
from core.layers.fused_forward import one_by_one
from core.layers.fused_routers import FusedRouter
from core.layers.kv_cache import KVCache
from core.runtime.loader import LoadedModel, load_model
from core.spec import Format
from tests.core.families import make_model
from tests.core.greedy import GreedyPath
from tests.core.layers.fused import PROMPT, load
from tests.core.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next")
ROUTED = ("mixtral", "qwen3_moe", "gpt_oss", "qwen3_next", "gemma4_text")


def modules(path: GreedyPath) -> list[Any]:
    return [module for module in path.module.modules() if moe.linears_of(module)]


def routers(path: GreedyPath) -> list[Any]:
    return [module for module in path.module.modules() if isinstance(vars(module).get("forward"), FusedRouter)]


def outputs(module: Any, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    columns = moe.linears_of(module)[moe.fused_names(module)[1]][0].host.rows
    x = torch.randn(rows, columns, generator=generator).bfloat16()
    chosen = torch.rand(rows, module.num_experts, generator=generator).topk(2).indices
    shares = torch.rand(rows, 2, generator=generator).bfloat16()
    with torch.inference_mode():
        return moe.experts_forward(module, x, chosen, shares).float()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_as_one_expert_after_the_other(family: str, format: Format, tmp_path: Path) -> None:
    path = load(family, tmp_path, format)
    module = modules(path)[0]
    found = [outputs(module, rows) for rows in (1, 3, 8, 60)]
    together = vars(module).pop(moe.TOGETHER)
    for ours, rows in zip(found, (1, 3, 8, 60), strict=True):
        plain = outputs(module, rows)
        assert (ours - plain).norm() <= 0.01 * plain.norm()
    assert together.suits(torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("family", ROUTED)
def test_routers_are_found_and_choose_the_same(family: str, tmp_path: Path) -> None:
    path = load(family, tmp_path)
    assert len(routers(path)) == len(modules(path))
    router = routers(path)[0]
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        _, shares, chosen = router(x)
        fused_routers.release(path.module)
        _, own_shares, own_chosen = router(x)
    assert torch.equal(chosen.sort(1).values, own_chosen.sort(1).values)
    torch.testing.assert_close(shares.sort(1).values, own_shares.float().sort(1).values, rtol=0.01, atol=1e-3)


def test_a_token_goes_through_the_call_and_a_long_prompt_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = load("qwen3_moe", tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("an expert was computed by itself")

    for module in modules(path):
        for linears in moe.linears_of(module).values():
            for linear in linears:
                monkeypatch.setattr(linear, "forward", refuse)
    cache = KVCache(path.module.config, 256)
    path.model.forward(PROMPT * 8, cache)
    path.model.forward([1], cache)
    del vars(modules(path)[0])[moe.TOGETHER]
    fused_mixtures.release(path.module)
    with one_by_one(path.model.placement.runs), pytest.raises(ModelFailed, match="by itself"):
        path.model.forward([1], cache)


def test_prompts_go_to_the_library_that_is_fastest_for_so_many_rows_of_an_expert() -> None:
    called = []

    class Native:
        dtype = torch.bfloat16

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
            called.append(self.name)
            return x

    some: Any = [Native("one"), Native("few"), Native("some"), None]
    experts = FusedExperts(some, 4)
    for rows in (1, 8, 64, 200):
        x, chosen = torch.zeros(rows, 8).bfloat16(), torch.zeros(rows, 2, dtype=torch.int64)
        assert experts.suits(x, chosen) == (rows < 200)
        if rows < 200:
            experts(x, chosen, torch.ones(rows, 2))
    assert called == ["one", "few", "some"]


def test_another_activation_is_left_to_the_module(tmp_path: Path) -> None:
    path = load("mixtral", tmp_path, hidden_act="relu")
    assert not any(moe.TOGETHER in vars(module) for module in modules(path))
    assert len(path.tokens(PROMPT, 4)) == 4


def test_weights_in_full_precision_are_left_to_torch(tmp_path: Path) -> None:
    make_model("mixtral", tmp_path, dtype=torch.float32)
    path = GreedyPath(tmp_path, LoadOptions(format="bf16", context=256, threads=1))
    assert not any(moe.TOGETHER in vars(module) for module in modules(path))


def test_a_device_takes_over_and_gives_back(tmp_path: Path) -> None:
    make_model("qwen3_moe", tmp_path, dtype=torch.bfloat16)
    write_tokenizer(tmp_path)
    options = LoadOptions(format="int8", context=256, threads=1, simulate_gpu="vram=1MiB,link=1GB/s")
    *_, loaded = load_model(tmp_path, options)
    assert isinstance(loaded, LoadedModel)
    assert isinstance(loaded.machine.accelerator(loaded.plan.gpu), SimulatedAccelerator)
    assert parse_simulation("vram=1MiB,link=1GB/s") is not None
    there = loaded.model.forward(PROMPT, loaded.cache)[-1]
    assert not any(
        isinstance(vars(m).get(moe.TOGETHER), FusedExperts) or isinstance(vars(m).get("forward"), FusedRouter)
        for m in loaded.source.module.modules()
    )
    loaded.to_host()
    assert any(moe.TOGETHER in vars(module) for module in loaded.source.module.modules())
    loaded.cache.reset()
    here = loaded.model.forward(PROMPT, loaded.cache)[-1]
    assert torch.nn.functional.cosine_similarity(there, here, dim=0) > 0.99
    loaded.close()


def test_experts_are_ours_also_where_the_loop_is_faster_with_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial gives each of two experts many rows, for which ours may not be the fastest."""
    every = fused_experts.common_library
    monkeypatch.setattr(fused_experts, "common_library", lambda hosts, rows: every(hosts, rows) if rows == 1 else None)
    folder = write_tokenizer(make_model("qwen3_moe", tmp_path, torch.bfloat16, num_experts=2))
    path = GreedyPath(folder, LoadOptions(context=256, threads=1, format="bf16"))
    assert all(isinstance(vars(module).get(moe.TOGETHER), FusedExperts) for module in modules(path))
