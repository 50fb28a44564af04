"""Heads' inputs times a weight each in one call: the same as by torch, with every instruction set."""

from __future__ import annotations

import pytest
import torch

from core.kernels.native_abi import instruction_sets
from core.kernels.native_heads import NativeHeads
from core.kernels.native_library import open_library
from core.kernels.quantize import quantize

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
HEADS, COLUMNS, WIDER = 3, 84, 5


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("storage", ["int8", "int4", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "results"), [(1, 130), (3, 7), (8, 64)])
def test_every_instruction_set_and_storage(isa: str, storage: str, dtype: torch.dtype, rows: int, results: int) -> None:
    """Inputs and results lie in wider rows, of which the rest must not change."""
    torch.manual_seed(rows)
    stored = torch.bfloat16 if storage == "bf16" else torch.float32
    weights = [quantize(torch.randn(results, COLUMNS).to(stored), storage) for _ in range(HEADS)]  # type: ignore[arg-type]
    x = torch.randn(1, rows, HEADS, COLUMNS + WIDER).to(dtype).transpose(1, 2)[..., :COLUMNS]
    whole = torch.full((1, HEADS, rows, results + WIDER), 7.0, dtype=dtype)
    NativeHeads(open_library(isa), weights)(x, whole[..., :results])
    wide = torch.stack([weight.dequantize(torch.float32).T for weight in weights])
    expected = x.float() @ wide
    bound = (0.01 if storage == "bf16" else 0.03) * expected.abs().max()
    assert (whole[..., :results].float() - expected).abs().max() <= bound
    assert (whole[..., results:] == 7).all()
