"""All candidate kernels against plain arithmetic, for odd shapes, slices, non-finite and huge inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.kernels.matmul import BatchedMatmul, Kernel, bucket, host_matmul, kernels_for
from core.kernels.native_abi import instruction_sets, library_files
from core.kernels.native_copy import copy_past_caches
from core.kernels.native_library import MOST_FEW, Parts, open_library
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import Format

STORAGES = ("fp32", "bf16", "fp16", "int8", "int4")
CASES = [
    pytest.param(storage, offer, id=f"{storage}-{offer.name}") for storage in STORAGES for offer in kernels_for(storage)
]
# Largest error relative to the dequantised weight: from rounding inputs to 8 bits, or both input and output to 16 bits
# (half a step each, so one `eps`, and their product).
TOLERANCE = {"fp32": 1e-5, "bf16": 8e-3, "fp16": 2e-3, "int8": 1.2e-2, "int4": 1.2e-2}


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def weight_of(storage: str, rows: int, columns: int) -> QuantizedWeight:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    weight = torch.randn(rows, columns) * 0.05
    if storage in ("int8", "int4"):
        format: Format = "int8" if storage == "int8" else "int4"
        return quantize(weight, format)
    return quantize(weight.to(dtypes.get(storage, torch.float32)), "bf16")


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("storage", "offer"), CASES)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 520),
    m=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 100, 600]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_every_candidate_computes_the_product(
    storage: str, offer: Kernel, rows: int, columns: int, m: int, dtype: torch.dtype
) -> None:
    weight = weight_of(storage, rows, columns)
    m = min(m, offer.most_rows)
    x = torch.randn(m, columns).to(dtype)
    found = offer.compute(weight, HostInput(x), 0, rows)
    assert found.shape == (m, rows)
    assert found.dtype == dtype
    expected = x.double() @ weight.dequantize(torch.float32).double().T
    # A few numbers can cancel to almost nothing, so that the error is compared with the terms of the sum.
    slack = TOLERANCE[storage] + 2 * torch.finfo(dtype).eps
    size = (x.double().norm(dim=1, keepdim=True) * weight.dequantize(torch.float32).double().norm(dim=1)).square()
    assert (found.double() - expected).norm() <= slack * size.sum().sqrt() * 1.2 + 1e-6


ROUNDED = {"bf16": 2**-7, "fp16": 2**-10}
"""The largest relative step between two numbers of a type."""


@pytest.mark.parametrize(("storage", "offer"), CASES)
@settings(max_examples=8, deadline=None)
@given(
    m=st.sampled_from([1, 3, 8, 9, 40]),
    begin=st.integers(0, 90),
    count=st.integers(1, 90),
    columns=st.sampled_from([64, 130, 256]),
)
def test_slices_equal_the_whole(storage: str, offer: Kernel, m: int, begin: int, count: int, columns: int) -> None:
    weight = weight_of(storage, 180, columns)
    x = HostInput(torch.randn(min(m, offer.most_rows), columns))
    whole = offer.compute(weight, x, 0, 180)
    part = offer.compute(weight, x, begin, begin + count)
    # With AVX512-FP16, torch's sums depend on the number of rows, and may round to the next number of 16 bits.
    rtol = ROUNDED[storage] if offer.name == "linear" and storage in ROUNDED else 1e-5
    torch.testing.assert_close(part, whole[:, begin : begin + count], rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(("storage", "offer"), CASES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("m", [1, 8, 13])
def test_broken_inputs_stay_visible(storage: str, offer: Kernel, bad: float, m: int) -> None:
    weight = weight_of(storage, 64, 256)
    x = torch.randn(min(m, offer.most_rows), 256)
    x[-1, 100] = bad
    found = offer.compute(weight, HostInput(x), 0, 64)
    assert not found[-1].isfinite().any()
    assert found[:-1].isfinite().all()


@pytest.mark.parametrize(("storage", "offer"), CASES)
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e10, 1e25])
def test_extreme_inputs_keep_their_precision(storage: str, offer: Kernel, scale: float) -> None:
    if storage == "fp16" and offer.name == "linear":
        pytest.skip("torch computes in fp16 there, whose range is small")
    weight = weight_of(storage, 64, 256)
    x = torch.randn(4, 256) * scale
    expected = x.double() @ weight.dequantize(torch.float32).double().T
    assert relative_error(offer.compute(weight, HostInput(x), 0, 64), expected) < TOLERANCE[storage]


@pytest.mark.parametrize(("storage", "offer"), [case for case in CASES if case.values[0] in ("int8", "int4")])
@pytest.mark.parametrize("m", [1, 8, 64])
def test_error_with_and_without_outlier_channels(storage: str, offer: Kernel, m: int) -> None:
    """The design's rule: int8 has at most 1.7 x Q8_0's error, int4 at most Q4_0's, plain and with six channels x50."""
    torch.manual_seed(5)
    weight = torch.randn(512, 2048) * 0.02
    plain = torch.randn(64, 2048)
    outliers = plain.clone()
    outliers[:, torch.randperm(2048)[:6]] *= 50
    limits = {"int8": (1.7 * 0.0076, 1.7 * 0.0131), "int4": (0.0859, 0.0862)}[storage]
    quantized = quantize(weight, "int8" if storage == "int8" else "int4")
    for x, limit in zip((plain, outliers), limits, strict=True):
        found = torch.cat([offer.compute(quantized, HostInput(part), 0, 512) for part in torch.split(x, m)])
        assert relative_error(found, x @ weight.T) < limit


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("m", [1, 8, 9, 65])
def test_the_chosen_one_takes_tensors_inputs_and_leading_dimensions(storage: str, m: int) -> None:
    weight = weight_of(storage, 96, 128)
    matmul = host_matmul(weight)
    x = torch.randn(m, 128)
    assert (matmul.rows, matmul.columns, matmul.nbytes) == (96, 128, weight.nbytes)
    whole = matmul(x)
    assert torch.equal(matmul(HostInput(x[None])), whole)
    assert torch.equal(matmul(HostInput(x), 16, 48), matmul(x, 16, 48))


def test_an_input_is_prepared_once_for_all_its_readers() -> None:
    x = HostInput(torch.randn(1, 256))
    for name in instruction_sets():
        library = open_library(name)
        assert x.prepared(library, "int8") is x.prepared(library, "int4")
        assert x.prepared(library, "bf16") is x.prepared(library, "fp16")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    m=st.sampled_from([1, 5, 9]),
    storages=st.sampled_from([("int8",), ("int4",), ("bf16",), ("int8", "int4")]),
)
def test_multiplying_together_equals_one_by_one(rows: list[int], m: int, storages: tuple[str, ...]) -> None:
    matmuls = [host_matmul(weight_of(storages[i % len(storages)], count, 192)) for i, count in enumerate(rows)]
    x = HostInput(torch.randn(m, 192))
    for found, matmul in zip(BatchedMatmul(matmuls)(x), matmuls, strict=True):
        torch.testing.assert_close(found, matmul(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 6, 40])
def test_outputs_are_rounded_as_torch_does(storage: str, dtype: torch.dtype, m: int) -> None:
    weight = weight_of(storage, 77, 200)
    for name in instruction_sets():
        library = open_library(name)
        prepared = HostInput(torch.randn(m, 200).to(dtype)).prepared(library, storage)
        part = Parts([(weight, 0, 77)])
        wide = library.matmul(part, prepared, m, 200, torch.float32)[0]
        assert torch.equal(library.matmul(part, prepared, m, 200, dtype)[0], wide.to(dtype))


def test_strided_inputs_are_read_as_they_lie() -> None:
    wide = torch.randn(12, 512)
    weight = weight_of("int8", 32, 256)
    matmul = host_matmul(weight)
    for x in (wide[:, 128:384], torch.randn(256, 12).T):
        assert torch.equal(matmul(x), matmul(x.contiguous()))


def test_a_name_that_is_not_offered_falls_back() -> None:
    matmul = host_matmul(weight_of("bf16", 32, 64), ("no such kernel",) * 4)
    assert matmul(torch.randn(100, 64)).shape == (100, 32)
    assert [bucket(rows) for rows in (1, 2, MOST_FEW, MOST_FEW + 1, 64, 65)] == [0, 1, 1, 2, 2, 3]


@pytest.mark.skipif(not library_files(), reason="the package was built without a compiler")
def test_the_library_shares_torchs_threads() -> None:
    """A second OpenMP library would bring a second pool of spinning threads."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux shows what is loaded")
    assert instruction_sets()
    pools = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line or "libiomp" in line}
    assert len(pools) == 1


@pytest.mark.parametrize("nbytes", [0, 1, 15, 16, 63, 64, 65, 200, 4096, 100_003])
@pytest.mark.parametrize(("to", "start"), [(0, 0), (1, 0), (0, 3), (7, 9), (16, 48), (63, 1)])
def test_a_copy_past_the_caches_is_a_copy_and_touches_nothing_else(nbytes: int, to: int, start: int) -> None:
    source, target = torch.randint(0, 255, (101_000,), dtype=torch.uint8), torch.full((101_000,), 255).byte()
    copy_past_caches(target.data_ptr() + to, source.data_ptr() + start, nbytes)
    assert torch.equal(target[to : to + nbytes], source[start : start + nbytes])
    assert bool((target[:to] == 255).all())
    assert bool((target[to + nbytes :] == 255).all())
