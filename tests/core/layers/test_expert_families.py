"""Mixtures of experts in fp32 arithmetic through our library's calls: the same greedy tokens as transformers' own.

The experts' weights are stored in bf16, all others in fp32: so our library computes them, and rounds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.kernels.matmul import host_matmul
from core.kernels.native_experts import NativeExperts
from core.kernels.native_library import instruction_sets
from core.kernels.native_router import NativeRouter
from core.kernels.quantize import quantize
from core.layers import fused_experts, fused_routers, moe
from core.offload.host_weight import HostWeight
from tests.core.families import EXPERT_FAMILIES, make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
FAMILIES = ("mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v3", *EXPERT_FAMILIES)
OWN_ROUTERS = ("gemma4_text",)
"""Families whose routers are computed by transformers: one has a norm and scales of its own."""
TOKENS = 48


def round_weights(folder: Path) -> None:
    """To what bf16 holds, of a checkpoint that stays one of fp32."""
    for file in folder.glob("*.safetensors"):
        rounded = {n: t.bfloat16().float() if t.dim() > 1 else t for n, t in load_file(file).items()}
        save_file(rounded, file, {"format": "pt"})


def store_experts_in_bf16(root: Any) -> None:
    """Of a loaded model in fp32; what is found for such experts is then looked for again."""
    for module in root.modules():
        for linears in moe.linears_of(module).values():
            for linear in linears:
                linear.host = HostWeight(host_matmul(quantize(linear.host.weight.data.bfloat16(), "bf16")))
    fused_experts.adopt(root)
    fused_routers.adopt(root)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of the library's calls is made."""
    counted = {"experts": 0, "routers": 0}

    def count(owner: Any, part: str) -> None:
        own = owner.__call__

        def counting(self: Any, x: Tensor, *args: Any) -> Any:
            counted[part] += 1
            return own(self, x, *args)

        monkeypatch.setattr(owner, "__call__", counting)

    count(NativeExperts, "experts")
    count(NativeRouter, "routers")
    return counted


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_transformers(family: str, tmp_path: Path, calls: dict[str, int]) -> None:
    make_model(family, tmp_path)
    round_weights(tmp_path)
    prompt = random_prompt(40)
    expected = reference_tokens(tmp_path, prompt, TOKENS)
    path = GreedyPath(tmp_path)
    store_experts_in_bf16(path.module)
    layers = sum(bool(moe.linears_of(module)) for module in path.module.modules())
    calls.update(experts=0, routers=0)
    assert path.tokens(prompt, TOKENS) == expected
    assert layers > 0
    assert calls["experts"] >= layers * (TOKENS - 1)
    assert calls["routers"] >= layers * (TOKENS - 1) or family in OWN_ROUTERS
