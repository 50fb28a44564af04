"""Experts and routers in one call: the same as by torch from the same weights, with every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.kernels.native_abi import instruction_sets
from core.kernels.native_experts import Activation, ExpertParts, NativeExperts
from core.kernels.native_library import open_library
from core.kernels.native_mixture import NativeMixture, SharedExpert
from core.kernels.native_router import NativeRouter, RouterParts, Routing
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight, pack

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
HIDDEN, INNER, EXPERTS, CHOICES = 84, 101, 6, 3
SILU = Activation("silu")
ACTIVATIONS = (
    SILU,
    Activation("gelu_tanh", interleaved=True),
    Activation("clamped", interleaved=True, alpha=1.7, limit=2.0),
    Activation("relu_squared"),
)


def opened(wide: Tensor, activation: Activation) -> Tensor:
    if activation.name == "relu_squared":
        return wide.relu().square()
    gate, up = (wide[:, ::2], wide[:, 1::2]) if activation.interleaved else wide.chunk(2, 1)
    if activation.name == "clamped":
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        return (up + 1) * gate * torch.sigmoid(gate * activation.alpha)
    return (F.silu(gate) if activation.name == "silu" else F.gelu(gate, approximate="tanh")) * up


def expected(parts: ExpertParts, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32)
    for row, (experts, weights) in enumerate(zip(chosen.tolist(), shares.tolist(), strict=True)):
        for expert, share in zip(experts, weights, strict=True):
            if expert >= EXPERTS:
                continue
            up, down = (part[expert].dequantize(torch.float32) for part in (parts.up, parts.down))
            wide = x[row : row + 1].float() @ up.t()
            wide = wide if parts.up_bias is None else wide + parts.up_bias[expert].float()
            y = opened(wide, parts.activation) @ down.t()
            out[row] += share * (y if parts.down_bias is None else y + parts.down_bias[expert].float())[0]
    return out


def weights(rows: int, columns: int, storage: str) -> list[QuantizedWeight]:
    stored = torch.bfloat16 if storage == "bf16" else torch.float32
    drawn = [torch.randn(rows, columns) * columns**-0.5 for _ in range(EXPERTS)]
    if storage == "fp8":
        scales = torch.full((rows, -(-columns // 128)), columns**-0.5)
        return [pack("fp8", (one * columns**0.5).to(torch.float8_e4m3fn), scales) for one in drawn]
    return [quantize(one.to(stored), storage) for one in drawn]  # type: ignore[arg-type]


def parts(activation: Activation, storage: str, dtype: torch.dtype, *, biased: bool) -> ExpertParts:
    rows = INNER if activation.name == "relu_squared" else 2 * INNER
    biases = [torch.randn(EXPERTS, length).to(dtype) if biased else None for length in (rows, HIDDEN)]
    return ExpertParts(activation, weights(rows, HIDDEN, storage), weights(HIDDEN, INNER, storage), *biases)


def choices(rows: int) -> tuple[Tensor, Tensor]:
    return torch.rand(rows, EXPERTS).topk(CHOICES).indices, torch.rand(rows, CHOICES)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("storage", ["int8", "int4", "bf16", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 8, 40])
def test_every_instruction_set_and_storage(isa: str, storage: str, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    made = parts(SILU, storage, dtype, biased=False)
    assert made.fit(dtype)
    native = NativeExperts(open_library(isa), made, dtype)
    x = torch.randn(rows, HIDDEN).to(dtype)
    chosen, shares = choices(rows)
    found, wanted = native(x, chosen, shares), expected(made, x, chosen, shares)
    assert found.dtype is dtype
    # Inputs of quantised weights have 8 bits.
    assert (found.float() - wanted).norm() <= (
        0.02 if storage != "bf16" or dtype is torch.bfloat16 else 1e-5
    ) * wanted.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_activations_and_biases(activation: Activation, biased: bool) -> None:
    torch.manual_seed(1)
    made = parts(activation, "bf16", torch.float32, biased=biased)
    native = NativeExperts(open_library(instruction_sets()[0]), made, torch.float32)
    x, (chosen, shares) = torch.randn(5, HIDDEN) * 3, choices(5)
    torch.testing.assert_close(native(x, chosen, shares), expected(made, x, chosen, shares), rtol=1e-4, atol=1e-4)


def test_numbers_that_no_expert_has_are_left_out_and_one_expert_may_have_all_rows() -> None:
    torch.manual_seed(2)
    made = parts(SILU, "bf16", torch.float32, biased=False)
    native = NativeExperts(open_library(instruction_sets()[0]), made, torch.float32)
    x, shares = torch.randn(40, HIDDEN), torch.rand(40, 2)
    chosen = torch.tensor([[4, EXPERTS]]).repeat(40, 1)
    torch.testing.assert_close(native(x, chosen, shares), expected(made, x, chosen, shares), rtol=1e-4, atol=1e-5)
    assert not native(x, torch.full((40, 2), EXPERTS), shares).any()


def test_rows_that_are_not_numbers_stay_so_and_leave_the_others_alone() -> None:
    made = parts(SILU, "int8", torch.bfloat16, biased=False)
    native = NativeExperts(open_library(instruction_sets()[0]), made, torch.bfloat16)
    x, (chosen, shares) = torch.randn(4, HIDDEN).bfloat16(), choices(4)
    whole = native(x, chosen, shares)
    x[2, 7] = torch.nan
    broken = native(x, chosen, shares)
    assert broken[2].isnan().all()
    assert torch.equal(broken[[0, 1, 3]], whole[[0, 1, 3]])


ROUTINGS = (
    Routing("softmax_of_all", 3, normed=True, rounded_scores=False, rounded_shares=False),
    Routing("softmax_of_all", 3, normed=False, rounded_scores=True, rounded_shares=True),
    Routing("softmax_of_chosen", 3, normed=False, rounded_scores=False, rounded_shares=False),
    Routing("sigmoid_of_each", 3, normed=True, rounded_scores=False, rounded_shares=False, scale=2.5),
    Routing("sigmoid_of_each", 3, True, False, False, scale=2.5, groups=4, kept_groups=2),
    Routing("softmax_of_all", 3, False, False, False, groups=4, kept_groups=2, group_best=1),
)


def routed(routing: Routing, scores: Tensor, correction: Tensor) -> tuple[Tensor, Tensor]:
    """Compute shares and numbers of the chosen experts with torch."""
    if routing.kind == "softmax_of_all":
        scores = scores.softmax(-1)
    if routing.kind == "sigmoid_of_each":
        scores = scores.sigmoid()
    wanted = scores + correction
    grouped = wanted.view(len(scores), routing.groups, -1)
    kept = grouped.topk(routing.group_best).values.sum(-1).topk(routing.kept_groups).indices
    inside = torch.zeros(len(scores), routing.groups).scatter_(1, kept, 1.0).bool()
    wanted = grouped.masked_fill(~inside[:, :, None], -torch.inf).flatten(1)
    chosen = wanted.topk(routing.choices).indices
    shares = scores.gather(1, chosen)
    if routing.kind == "softmax_of_chosen":
        shares = shares.softmax(-1)
    shares = shares / shares.sum(1, keepdim=True) if routing.normed else shares
    return shares * routing.scale, chosen


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_router_chooses_as_torch_does(isa: str, routing: Routing, stored: torch.dtype) -> None:
    torch.manual_seed(3)
    weight, bias, correction = torch.randn(16, HIDDEN).to(stored), torch.randn(16), torch.randn(16) / 10
    kept = QuantizedWeight("bf16", (16, HIDDEN), weight)
    native = NativeRouter(open_library(isa), routing, RouterParts(kept, bias, correction))
    x = torch.randn(8, HIDDEN) / 4
    scores, shares, chosen = native(x)
    plain = x @ weight.float().t() + bias
    plain = plain.bfloat16().float() if routing.rounded_scores else plain
    torch.testing.assert_close(scores, plain, rtol=0.01 if routing.rounded_scores else 1e-4, atol=1e-4)
    wanted, numbers = routed(routing, scores, correction)
    assert torch.equal(chosen, numbers)
    torch.testing.assert_close(shares, wanted.bfloat16().float() if routing.rounded_shares else wanted)


def test_scores_whose_sigmoids_are_1_are_told_apart() -> None:
    weight = torch.ones(4, HIDDEN) * torch.tensor([[3.0], [1.0], [4.0], [2.0]])
    kept = QuantizedWeight("fp32", (4, HIDDEN), weight)
    routing = Routing("sigmoid_of_each", 2, normed=False, rounded_scores=False, rounded_shares=False)
    _, shares, chosen = NativeRouter(open_library(instruction_sets()[0]), routing, RouterParts(kept))(
        torch.full((1, HIDDEN), 30.0)
    )
    assert chosen.tolist() == [[2, 0]]
    assert shares.tolist() == [[1, 1]]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_what_an_expert_reads_may_be_multiplied_instead_of_its_result(isa: str, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    library, made = open_library(isa), parts(SILU, "bf16", dtype, biased=False)
    vectors = torch.randn(EXPERTS, HIDDEN).bfloat16()
    routing = Routing("sigmoid_of_each", 1, normed=False, rounded_scores=False, rounded_shares=False)
    router = NativeRouter(library, routing, RouterParts(QuantizedWeight("bf16", (EXPERTS, HIDDEN), vectors)))
    x = (torch.randn(rows, HIDDEN) / 8).to(dtype)
    shares, chosen = routed(routing, x.float() @ vectors.float().t(), torch.zeros(EXPERTS))
    wanted = expected(made, (x.float() * shares).to(dtype), chosen, torch.ones_like(shares))
    before = x.clone()
    found = NativeMixture(router, NativeExperts(library, made, dtype), scaled=True)(x)
    assert (found.float() - wanted).norm() <= (0.02 if dtype is torch.bfloat16 else 1e-5) * wanted.norm()
    assert torch.equal(x, before)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_mixture_adds_the_expert_that_every_row_goes_to(
    isa: str, dtype: torch.dtype, opened: bool, rows: int
) -> None:
    torch.manual_seed(rows)
    library, made = open_library(isa), parts(SILU, "bf16", dtype, biased=False)
    vectors = torch.randn(EXPERTS, HIDDEN).bfloat16()
    routing = Routing("softmax_of_all", CHOICES, normed=True, rounded_scores=False, rounded_shares=False)
    gain, worth = torch.rand(HIDDEN) + 0.5, torch.rand(EXPERTS)
    kept = QuantizedWeight("bf16", (EXPERTS, HIDDEN), vectors)
    router = NativeRouter(library, routing, RouterParts(kept, gain=gain, eps=1e-6, worth=worth))
    gate, up, down, door = (
        torch.randn(size).bfloat16() / 4 for size in ((22, HIDDEN), (22, HIDDEN), (HIDDEN, 22), (1, HIDDEN))
    )
    packed = [QuantizedWeight("bf16", (len(one), one.shape[1]), one) for one in (gate, up, down, door)]
    shared = SharedExpert("silu", *packed[: 4 if opened else 3])
    assert shared.fit(HIDDEN)
    experts = NativeExperts(library, made, dtype)
    x = torch.randn(rows, HIDDEN).to(dtype)
    wide = x.float()
    scores = (wide * (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt() * gain) @ vectors.float().t()
    shares, chosen = routed(routing, scores, torch.zeros(EXPERTS))
    wanted = expected(made, x, chosen, shares * worth[chosen])
    added = (torch.nn.functional.silu(wide @ gate.float().t()) * (wide @ up.float().t())) @ down.float().t()
    wanted = wanted + added * (wide @ door.float().t()).sigmoid() if opened else wanted + added
    found = NativeMixture(router, experts, shared)(x)
    assert found.dtype is dtype
    assert (found.float() - wanted).norm() <= (0.02 if dtype is torch.bfloat16 else 1e-5) * wanted.norm()
