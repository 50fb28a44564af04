"""Storages: every row of the table represents its numbers exactly, by its kind's defining formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.kernels.column_order import ColumnOrder
from core.kernels.matmul import BatchedMatmul, ChosenMatmul, Kernel, host_matmul, kernels_for
from core.kernels.native_library import MOST_FEW
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight, empty, pack
from core.spec import BUCKET_NAMES, COARSE_COLUMNS, LAYOUTS, Storage, cut_columns, row_bytes

GROUPED: list[Storage] = [storage for storage, layout in LAYOUTS.items() if layout.group]
KERNELS = [
    pytest.param(storage, kernel, id=f"{storage}-{kernel.name}")
    for storage in GROUPED
    for kernel in kernels_for(storage)
    if kernel.library is not None
]


def made(storage: Storage, rows: int, columns: int) -> tuple[QuantizedWeight, Tensor]:
    """Make a random weight, and its expected numbers."""
    layout = LAYOUTS[storage]
    least, most = (-128, 128) if layout.bits == 8 else (-layout.zero, (1 << layout.bits) - layout.zero)
    codes = torch.randint(least, most, (rows, columns), dtype=torch.int8)
    if layout.floats:
        codes = torch.where(codes & 0x7F == 0x7F, 0, codes).view(torch.float8_e4m3fn)
    count, shared = -(-columns // layout.group), -(-columns // COARSE_COLUMNS)

    def scales() -> tuple[Tensor | tuple[Tensor, Tensor], Tensor]:
        if layout.scale == "fine":
            fine = torch.randint(-32, 64, (rows, count), dtype=torch.int8)
            factor = torch.rand(rows, shared).half()
            wide = factor.float().repeat_interleave(COARSE_COLUMNS // layout.group, 1)[:, :count] * fine.float()
            return (fine, factor), wide
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[layout.scale]
        plain = torch.randn(rows, count).to(kind)
        return plain, plain.float()

    (scale, wide), (minimum, low) = scales(), scales()
    values = torch.tensor(layout.codes)[codes.long()] if layout.codes else codes
    expected = values.float() * wide.repeat_interleave(layout.group, 1)[:, :columns]
    if layout.minimum:
        expected += low.repeat_interleave(layout.group, 1)[:, :columns]
    return pack(storage, codes, scale, minimum if layout.minimum else None), expected


@pytest.mark.parametrize("storage", GROUPED)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (17, 128), (40, 576), (3, 1536)])
def test_weights_are_what_their_parts_mean_bit_for_bit(storage: Storage, rows: int, columns: int) -> None:
    torch.manual_seed(0)
    weight, expected = made(storage, rows, columns)
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert torch.equal(weight.rows(rows // 2, rows).dequantize(torch.float32), expected[rows // 2 :])
    assert weight.row_bytes == row_bytes(storage, columns)
    like = empty(storage, rows, columns)
    assert [(one.shape, one.dtype) for one in like.tensors] == [(one.shape, one.dtype) for one in weight.tensors]


@pytest.mark.parametrize(("storage", "kernel"), KERNELS)
@pytest.mark.parametrize(("rows", "columns"), [(5, 32), (70, 576), (33, 1536)])
def test_products_are_those_of_the_weights(storage: Storage, kernel: Kernel, rows: int, columns: int) -> None:
    torch.manual_seed(1)
    weight, expected = made(storage, rows, columns)
    for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 21):
        x = torch.randn(m, columns)
        x[:, columns // 3] *= 50
        found = kernel.compute(weight, HostInput(x), 0, rows)
        # One input of a group is far larger than the rest. What its scale costs the others grows with the root of their
        # number; it never exceeds four standard deviations.
        allowed = 0.75 / 127 * x.abs().amax() * expected.abs().amax() * columns**0.5
        assert float((found - x @ expected.T).abs().max()) <= allowed
        part = kernel.compute(weight, HostInput(x), rows // 2, rows)
        torch.testing.assert_close(part, found[:, rows // 2 :], rtol=1e-5, atol=float(allowed) * 1e-3)


@pytest.mark.parametrize(("storage", "kernel"), [one for one in KERNELS if "native-avx512vnni" in str(one.id)])
def test_a_row_of_a_long_prompt_gives_the_bits_that_it_gives_in_a_shorter_one(storage: Storage, kernel: Kernel) -> None:
    """Panels of all columns and of a few take turns with the size of the input."""
    torch.manual_seed(5)
    weight, _ = made(storage, 35, 8192)
    x = torch.randn(131, 8192)
    whole = kernel.compute(weight, HostInput(x), 0, 35)
    assert torch.equal(kernel.compute(weight, HostInput(x[:100]), 0, 35), whole[:100])
    assert torch.equal(kernel.compute(weight, HostInput(x[100:]), 0, 35), whole[100:])


@pytest.mark.parametrize(("storage", "kernel"), KERNELS)
def test_products_of_inputs_that_need_no_rounding_are_exact(storage: Storage, kernel: Kernel) -> None:
    torch.manual_seed(2)
    weight, expected = made(storage, 40, 576)
    x = torch.randint(-127, 128, (11, 576)).float()
    x[:, ::32] = 127
    for m in (1, 4, 11):
        found = kernel.compute(weight, HostInput(x[:m]), 0, 40)
        size = x[:m].norm(dim=1, keepdim=True) * expected.norm(dim=1)
        assert float(((found - x[:m] @ expected.T).abs() / size).max()) < 2e-5


@pytest.mark.parametrize("storage", LAYOUTS)
def test_packed_rows_come_out_of_a_buffer_as_they_went_in(storage: Storage) -> None:
    weight = empty(storage, 48, 320)
    for one in weight.tensors:
        one.view(torch.uint8).random_(0, 60)
    buffer = torch.cat([part.reshape(-1).view(torch.uint8) for part in weight.parts(16, 48)])
    found = weight.unpack(buffer, 16, 48)
    assert torch.equal(found.dequantize(torch.float32), weight.dequantize(torch.float32)[16:])


def test_one_row_of_int8_has_one_scale() -> None:
    weight = pack("int8", torch.tensor([[-127, 5], [3, 4]]), torch.tensor([0.5, 2.0]))
    assert weight.dequantize(torch.float32).tolist() == [[-63.5, 2.5], [6.0, 8.0]]


def test_every_float_of_eight_bits_is_what_torch_says() -> None:
    every = torch.arange(-128, 128).to(torch.int8).view(1, 256)
    every[every & 0x7F == 0x7F] = 0
    weight = pack("fp8", every.view(torch.float8_e4m3fn), torch.ones(1, 2))
    assert torch.equal(weight.dequantize(torch.float32), every.view(torch.float8_e4m3fn).float())
    for kernel in kernels_for("fp8"):
        found = kernel.compute(weight, HostInput(torch.eye(256)), 0, 1)
        assert torch.equal(found.T, every.view(torch.float8_e4m3fn).float()), kernel.name
        one_by_one = [kernel.compute(weight, HostInput(row[None]), 0, 1) for row in torch.eye(256)[::5]]
        assert torch.equal(torch.cat(one_by_one), found[::5]), kernel.name


def test_a_float_of_eight_bits_that_is_no_number_shows() -> None:
    codes = torch.ones(3, 256).to(torch.float8_e4m3fn)
    codes[1, 200] = torch.nan
    weight = pack("fp8", codes, torch.ones(3, 2))
    assert weight.dequantize(torch.float32).isnan().any(1).tolist() == [False, True, False]
    for kernel in kernels_for("fp8"):
        for m in (1, 3, 20):
            found = kernel.compute(weight, HostInput(torch.ones(m, 256)), 0, 3)
            assert found.isnan().all(0).tolist() == [False, True, False], kernel.name


@pytest.mark.parametrize("storage", [*GROUPED, "int8", "bf16"])
def test_a_weight_is_cut_by_columns(storage: Storage) -> None:
    """Each part has the same numbers, and both products add up to the whole one's."""
    torch.manual_seed(4)
    rows, columns = 48, 1300
    plain = torch.randn(rows, columns)
    weight = made(storage, rows, columns)[0] if storage in GROUPED else quantize(plain.bfloat16(), storage)
    at = 2 * cut_columns(storage) if storage != "bf16" else 333
    parts = [weight.cut(0, at), weight.cut(at, columns)]
    numbers = weight.dequantize(torch.float32)
    assert torch.equal(torch.cat([part.dequantize(torch.float32) for part in parts], 1), numbers)
    assert all(part.data.untyped_storage().data_ptr() == weight.data.untyped_storage().data_ptr() for part in parts)
    for m in (1, 3, 40):
        x = torch.randn(m, columns)
        expected = x @ numbers.T
        for kernel in kernels_for(weight.storage):
            if m <= kernel.most_rows:
                halves = (x[:, :at].contiguous(), x[:, at:].contiguous())
                found = sum(
                    kernel.compute(part, HostInput(half), 0, rows) for part, half in zip(parts, halves, strict=True)
                )
                assert (found - expected).norm() < 0.02 * expected.norm(), (kernel.name, m)


@pytest.mark.parametrize("m", [1, 3, 40])
def test_columns_in_an_order_of_their_own(m: int) -> None:
    torch.manual_seed(3)
    order = torch.randperm(256)
    # As read from a file: two records of the same order.
    weights = [replace(made("int4g32", rows, 256)[0], order=ColumnOrder(order.clone())) for rows in (48, 20)]
    x, plain = torch.randn(m, 256), [replace(one, order=None).dequantize(torch.float32) for one in weights]
    expected = [x[:, order] @ one.T for one in plain]
    for one, numbers in zip(weights, plain, strict=True):
        assert torch.equal(one.dequantize(torch.float32)[:, order], numbers)
        assert one.rows(16, 20).order == ColumnOrder(order) != ColumnOrder(order.flip(0))
    for kernel in kernels_for("int4g32"):
        found = BatchedMatmul([ChosenMatmul(one, [kernel] * len(BUCKET_NAMES)) for one in weights])(HostInput(x))
        for one, wanted in zip(found, expected, strict=True):
            assert (one - wanted).norm() < 0.02 * wanted.norm(), kernel.name
    shared = HostInput(x)
    assert shared.ordered(weights[0].order) is shared.ordered(weights[1].order)
    mixed = [weights[0], replace(weights[1], order=None)]
    together = BatchedMatmul([host_matmul(one) for one in mixed])
    for one, weight in zip(together(HostInput(x)), mixed, strict=True):
        exact = x @ weight.dequantize(torch.float32).T
        assert (one - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("storage", "kernel"), [one for one in KERNELS if "native" in str(one.id)])
@pytest.mark.parametrize("columns", [64, 130, 1100])
def test_a_row_of_input_gives_the_same_bits_whatever_is_beside_it(
    storage: Storage, kernel: Kernel, columns: int
) -> None:
    """So that a drafted and verified token is the one that would have been drawn without drafting."""
    weight, _ = made(storage, 21, columns)
    _check_same_bits(weight, kernel)


@pytest.mark.parametrize(
    "kernel", [one for one in kernels_for("int8") if "native" in one.name], ids=lambda one: one.name
)
@pytest.mark.parametrize("columns", [64, 130, 190, 1100])
def test_a_row_of_bytes_gives_the_same_bits_whatever_is_beside_it(kernel: Kernel, columns: int) -> None:
    torch.manual_seed(5)
    _check_same_bits(quantize(torch.randn(21, columns), "int8"), kernel)


def _check_same_bits(weight: QuantizedWeight, kernel: Kernel, dtype: torch.dtype = torch.float32) -> None:
    rows, columns = weight.shape
    x = torch.randn(MOST_FEW, columns).to(dtype)
    alone = torch.cat([kernel.compute(weight, HostInput(row[None]), 0, rows) for row in x])
    for count in range(2, MOST_FEW + 1):
        assert torch.equal(kernel.compute(weight, HostInput(x[:count]), 0, rows), alone[:count])


@pytest.mark.parametrize(
    "kernel", [one for one in kernels_for("bf16") if "native" in one.name], ids=lambda one: one.name
)
@pytest.mark.parametrize("columns", [64, 100, 2500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_16_bits_gives_the_same_bits_whatever_is_beside_it(
    kernel: Kernel, columns: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(4)
    weight = QuantizedWeight("bf16", (37, columns), torch.randn(37, columns).bfloat16())
    x = torch.randn(MOST_FEW, columns).to(dtype)
    exact, found = x.double() @ weight.data.double().T, kernel.compute(weight, HostInput(x), 0, 37)
    assert float((found.double() - exact).norm() / exact.norm()) < (4e-3 if dtype is torch.bfloat16 else 1e-6)
    _check_same_bits(weight, kernel, dtype)
