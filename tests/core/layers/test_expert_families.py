"""Mixtures of experts in fp32 arithmetic through our library: the same greedy tokens as transformers.

Linears' weights are stored in bf16, all others in fp32, so that our library computes them without rounding.
"""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from core.kernels.matmul import host_matmul
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import MOST_FEW
from core.kernels.quantize import quantize
from core.layers import experts_beside, fused_experts, fused_layers, fused_mixtures, fused_routers, moe
from core.layers.fused_mixtures import FusedMixture
from core.layers.fused_routers import FusedRouter
from core.model.blueprint import decoder_layers
from core.offload.hetero_linear import HostLinear
from core.offload.host_weight import HostWeight
from core.spec import bucket
from tests.core.families import EXPERT_FAMILIES, make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
CORRECTED = ("lfm2_moe", "minimax_m2")
"""Families whose routers are passed their correction, which is zero in new models."""
FAMILIES = ("mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v3", "llama4_text", *EXPERT_FAMILIES, *CORRECTED)
FAMILIES += ("hunyuan_v1_moe",)
SEVERAL = {"hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2}}
"""Settings of the families whose tiny models have one expert otherwise."""
TOKENS = 48
EXACT = {bucket(rows): "widened-fp32" for rows in (MOST_FEW + 1, 1000)}
"""The kernels for many rows, which do not round inputs to the weight's type."""


def round_weights(folder: Path) -> None:
    """Round weights to bf16 values, in a checkpoint that stays fp32."""
    for file in folder.glob("*.safetensors"):
        rounded = {n: t.bfloat16().float() if t.dim() > 1 else t for n, t in load(file.read_bytes()).items()}
        save_file(rounded, file, {"format": "pt"})


def vary_vectors(folder: Path) -> None:
    """Let gains, biases and the like differ from those of new models, ones and zeros, which would hide mistakes."""
    draw = torch.Generator().manual_seed(7)
    for file in folder.glob("*.safetensors"):
        # In the order of names: `load` gives them in another order each time, and so another model.
        varied = {
            name: one + 0.2 * torch.randn(one.shape, generator=draw).to(one.dtype) if one.dim() == 1 else one
            for name, one in sorted(load(file.read_bytes()).items())
        }
        save_file(varied, file, {"format": "pt"})


def store_in_bf16(root: Any) -> None:
    """Store all linears of a loaded fp32 model in bf16, except its head, and fuse it anew.

    Mamba-2 rounds what its head reads to the type of the head's weights, which transformers' fp32 model does not.
    """
    linears = chain.from_iterable(chain(*moe.linears_of(module).values(), [module]) for module in root.modules())
    for linear in linears:
        if isinstance(linear, HostLinear) and linear is not root.get_output_embeddings():
            linear.host = HostWeight(host_matmul(quantize(linear.host.weight.data.bfloat16(), "bf16"), EXACT))
            linear.lead([])
    for room in (fused_experts, fused_routers, fused_mixtures):
        room.adopt(root)
    fused_layers.adopt(decoder_layers(root))


def count_few(module: Any, attribute: str, counted: list[int]) -> None:
    """Count the rows of `module`'s own calls for few rows, which our library should have taken."""
    own = getattr(module, attribute)

    def counting(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.numel() // x.shape[-1] <= MOST_FEW:
            counted.append(x.numel() // x.shape[-1])
        return own(x, *args, **kwargs)

    setattr(module, attribute, counting)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_transformers(family: str, tmp_path: Path) -> None:
    make_model(family, tmp_path, **SEVERAL.get(family, {}))
    if family in (*CORRECTED, "afmoe"):
        vary_vectors(tmp_path)
    round_weights(tmp_path)
    prompt = random_prompt(40)
    expected = reference_tokens(tmp_path, prompt, TOKENS)
    path = GreedyPath(tmp_path)
    store_in_bf16(path.module)
    places = product(path.module.modules(), ("forward", experts_beside.TOGETHER))
    forwards = [vars(module).get(place) for module, place in places]
    whole = [forward for forward in forwards if isinstance(forward, FusedMixture)]
    routers = [forward for forward in forwards if isinstance(forward, FusedRouter)]
    experts = sum(bool(moe.linears_of(module)) for module in path.module.modules())
    assert len(whole) == len(routers) == experts > 0
    few: list[int] = []
    for mixture in whole:
        count_few(mixture, "own", few)
    for router in routers:
        count_few(router, "_own", few)
    assert path.tokens(prompt, TOKENS) == expected
    assert not few
