"""Norms in one call: found in every family that has them, and equal to the module's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import open_library
from core.layers.norms import NativeRMSNorm, adopt, recognise
from tests.core.families import make_model
from tests.core.greedy import GreedyPath

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
DTYPES = [torch.float32, torch.bfloat16]


class Norm(nn.Module):
    """A norm in the variants of Llama, Gemma (weight + 1, rounded last), OLMo 2 (rounded last) and Cohere (centred)."""

    def __init__(self, kind: str, columns: int, dtype: torch.dtype, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter((torch.randn(columns) * 0.3 + 1).to(dtype), requires_grad=False)
        self.kind = kind
        self.some_number = 0.5
        self.epsilon = eps

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if self.kind == "cohere" else wide
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        if gate is not None:
            wide = wide * gate
        if self.kind == "llama":
            return self.scale * wide.to(x.dtype)
        gain = self.scale.float() + (1 if self.kind == "gemma" else 0)
        return (wide * gain).to(x.dtype)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gemma", "olmo", "cohere"])
@pytest.mark.parametrize("columns", [1, 7, 64, 300, 2048])
def test_norms_of_every_kind_are_recognised(isa: str, dtype: torch.dtype, kind: str, columns: int) -> None:
    torch.manual_seed(0)
    norm = Norm(kind, columns, dtype)
    found = recognise(norm, open_library(isa))
    assert found is not None
    x, eps = (torch.randn(3, 5, columns) * 4).to(dtype), torch.finfo(dtype).eps
    torch.testing.assert_close(found(x), norm(x), rtol=8 * eps, atol=8 * eps if kind == "cohere" else 0)


def test_a_norm_that_asks_for_a_gate_is_left_alone() -> None:
    class Gated(Norm):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(x) * gate.sigmoid()  # type: ignore[union-attr]

    assert recognise(Gated("llama", 64, torch.float32), open_library(instruction_sets()[0])) is None


def test_a_module_that_holds_a_table_and_no_weights_is_left_alone() -> None:
    angles = nn.Module()
    angles.register_buffer("frequencies", torch.ones(8))
    assert recognise(angles, open_library(instruction_sets()[0])) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_visible(dtype: torch.dtype) -> None:
    found = recognise(Norm("llama", 300, dtype), open_library(instruction_sets()[0]))
    assert found is not None
    x = torch.randn(3, 300).to(dtype)
    x[1, 280] = torch.nan
    assert found(x)[1].isnan().all()
    assert found(x)[::2].isfinite().all()


def test_what_is_computed_elsewhere_is_left_to_the_original() -> None:
    norm = Norm("olmo", 64, torch.bfloat16)
    found = recognise(norm, open_library(instruction_sets()[0]))
    assert found is not None
    x = torch.randn(4, 64)
    assert torch.equal(found(x), norm(x)), "another type"
    half = x.bfloat16()
    assert torch.equal(found(half, half), norm(half, half)), "a gate"
    assert torch.equal(found(half.T.contiguous().T), norm(half)), "not contiguous"


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm(64), nn.Linear(8, 8), nn.PReLU(), nn.BatchNorm1d(8)],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_are_left_alone(module: nn.Module) -> None:
    assert recognise(module, open_library(instruction_sets()[0])) is None


def test_torchs_layer_norm_without_a_bias_is_recognised() -> None:
    found = recognise(nn.LayerNorm(64, bias=False), open_library(instruction_sets()[0]))
    assert found is not None
    assert found.parts.centred


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "qwen3", "granite", "phi3", "mixtral"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_familys_norms_are_replaced_once(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = GreedyPath(make_model(family, tmp_path, dtype)).module
    adopt(module)
    ours = [one for one in module.modules() if isinstance(one, NativeRMSNorm)]
    theirs = [one for one in module.modules() if type(one).__name__.endswith("RMSNorm")]
    assert len(theirs) == 2 * len(ours)
    assert not any(isinstance(one.original, NativeRMSNorm) for one in ours)
