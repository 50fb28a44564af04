"""Formats: layout, error against the stored weight, slices, odd shapes and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import core.kernels.quantize
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import open_library
from core.kernels.quantize import encode_with_torch, quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import GROUP, Storage

FORMATS: tuple[Storage, ...] = ("int8", "int6", "int4")


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def _encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(core.kernels.quantize, "native", lambda: None)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def q4_0(weight: Tensor) -> Tensor:
    """Quantise to llama.cpp's Q4_0, from its description: groups of 32, the largest value becomes -8."""
    groups = weight.view(weight.shape[0], -1, 32)
    scale = groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8
    return ((groups / scale).round().clamp(-8, 7) * scale.half().float()).view_as(weight)


def test_int8_error_is_that_of_rounding() -> None:
    weight = torch.randn(256, 2048) * 0.02
    assert relative_error(quantize(weight, "int8").dequantize(torch.float32), weight) < 0.0088


def test_int4_error_is_far_less_than_q4_0() -> None:
    weight = torch.randn(256, 2048) * 0.02
    found = relative_error(quantize(weight, "int4").dequantize(torch.float32), weight)
    assert found < 0.84 * relative_error(q4_0(weight), weight)


def test_bf16_keeps_the_tensor_itself() -> None:
    weight = torch.randn(8, 8).half()
    assert quantize(weight, "bf16").data is weight
    assert quantize(weight, "bf16").storage == "fp16"


@pytest.mark.parametrize(
    ("format", "scale"),
    [("int8", 1e-30), ("int8", 1e-20), ("int8", 1e20), ("int8", 1e30)]
    + [(format, scale) for format in FORMATS for scale in (1e-4, 1e-2, 1.0, 1e2, 1e4)],
)
def test_extreme_scales_keep_their_precision(format: Storage, scale: float) -> None:
    """The factors of fine scales are fp16, as in GGUF: their range is that of weights, not of all floats."""
    weight = torch.randn(16, 256)
    found = quantize(weight * scale, format).dequantize(torch.float32) / scale
    assert relative_error(found, weight) < {"int8": 0.01, "int6": 0.022, "int4": 0.076}[format]


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e30])
def test_weights_beyond_the_range_of_fp16_become_zero_or_no_number(scale: float) -> None:
    found = quantize(torch.randn(4, 256) * scale, "int4").dequantize(torch.float32)
    assert not found.any() if scale < 1 else not found.isfinite().any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_weight_stays_visible(format: Storage, bad: float) -> None:
    weight = torch.randn(4, 200)
    weight[2, 77] = bad
    found = quantize(weight, format).dequantize(torch.float32)
    assert not found[2, 77].isfinite()
    assert found[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(format: Storage) -> None:
    assert not quantize(torch.zeros(3, 70), format).dequantize(torch.float32).any()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.integers(1, 70), st.integers(1, 300), st.sampled_from(["bf16", *FORMATS]), st.data())
def test_slices_and_packed_bytes_equal_the_whole(rows: int, columns: int, format: Storage, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    weight = quantize(torch.randn(rows, columns), format)
    whole = weight.dequantize(torch.float32)
    assert whole.shape == (rows, columns)
    part = weight.rows(begin, end)
    assert part.data.untyped_storage().data_ptr() == weight.data.untyped_storage().data_ptr()
    assert torch.equal(part.dequantize(torch.float32), whole[begin:end])
    assert torch.equal(unpacked(weight, begin, end).dequantize(torch.float32), whole[begin:end])


def unpacked(weight: QuantizedWeight, begin: int, end: int) -> QuantizedWeight:
    parts = weight.parts(begin, end)
    assert all(part.is_contiguous() for part in parts)
    buffer = torch.cat([part.reshape(-1).view(torch.uint8) for part in parts])
    assert buffer.nbytes == weight.row_bytes * (end - begin)
    return weight.unpack(buffer, begin, end)


def test_sizes_are_those_of_the_tensors() -> None:
    for format in ("bf16", *FORMATS):
        weight = quantize(torch.randn(48, 256), format)
        assert weight.nbytes == sum(part.nbytes for part in weight.tensors)
    assert quantize(torch.randn(48, 256), "int4").nbytes == 48 * (128 + 16 + 4)
    assert quantize(torch.randn(48, 256), "int6").nbytes == 48 * (192 + 8 + 2)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from(FORMATS), st.sampled_from([0, 1, 2]))
def test_compiled_and_torch_encode_alike(rows: int, columns: int, format: Storage, kind: int) -> None:
    weight = torch.randn(rows, columns + 3).to((torch.float32, torch.bfloat16, torch.float16)[kind])[:, :columns]
    by_torch, by_library = quantize(torch.zeros(rows, columns), format), quantize(torch.zeros(rows, columns), format)
    encode_with_torch(weight, by_torch)
    assert by_library.scales is not None
    for name in instruction_sets():
        open_library(name).encode(format, weight, by_library.data, by_library.scales)
        wanted, found = by_torch.dequantize(torch.float32), by_library.dequantize(torch.float32)
        # If two scales fit a group almost equally well, the order of summation decides between them. For the few
        # columns of a short group many do, and the cost of rounding the scale differs.
        slack = 0.01 if columns > GROUP else 0.06
        assert relative_error(found, weight.float()) <= relative_error(wanted, weight.float()) * 1.02 + slack
