"""The device kernels, run on the CPU through a stand-in for CUDA, and on a real card with `-m gpu`."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.kernels import cuda_dequant
from core.kernels.cuda_dequant import DeviceKernels, agrees, device_kernels, random_weight
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import LAYOUTS, Storage
from tests.core.kernels import compile_for_amd

HERE = Path(__file__).parent
CPU = torch.device("cpu")
ADDRESS = ctypes.c_void_p


class Call(ctypes.Structure):
    """`call` of card_on_the_processor.h."""

    _fields_ = [
        *((name, ADDRESS) for name in ("product", "widen", "data", "scales", "x", "y")),
        *((name, ctypes.c_int) for name in ("rows", "width", "count", "layout")),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> DeviceKernels:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to compile the stand-in for a card")
    built = tmp_path_factory.mktemp("card") / "card.so"
    options = ["-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas", "-x", "c"]
    source = Path(cuda_dequant.__file__).with_name("device.cu")
    subprocess.run([compiler, *options, "-include", HERE / "card_on_the_processor.h", source, "-o", built], check=True)
    return DeviceKernels(launcher(ctypes.CDLL(str(built))))


def launcher(library: ctypes.CDLL) -> cuda_dequant.Launch:
    def launch(name: str, blocks: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        addresses = [one.data_ptr() for one in arguments if isinstance(one, Tensor)]
        numbers = [one for one in arguments if isinstance(one, int)]
        assert all(one.is_contiguous() for one in arguments if isinstance(one, Tensor))
        entry = ctypes.cast(library[name], ADDRESS)
        if name.endswith("_product"):
            call = Call(entry, None, *addresses, *numbers)
        else:
            rows, width, *layout = numbers
            call = Call(None, entry, *addresses[:2], None, addresses[2], rows, width, 0, *layout)
        library.launch(ctypes.byref(call), *blocks, cuda_dequant.THREADS)

    return launch


@pytest.mark.parametrize("format", LAYOUTS)
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 40), columns=st.integers(1, 700), count=st.integers(1, cuda_dequant.MOST_FEW))
def test_products_and_widened_rows_are_those_of_torch(
    kernels: DeviceKernels, format: Storage, rows: int, columns: int, count: int
) -> None:
    weight = random_weight(format, rows, columns, CPU)
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(columns))
    exact = weight.dequantize(torch.float32)
    torch.testing.assert_close(kernels.product(weight, x), x @ exact.T, rtol=1e-4, atol=1e-4 * columns)
    torch.testing.assert_close(kernels.widen(weight), exact.to(torch.bfloat16), rtol=1e-2, atol=0)


@pytest.mark.parametrize("format", LAYOUTS)
def test_inputs_of_16_bits_and_wide_rows(kernels: DeviceKernels, format: Storage) -> None:
    weight = random_weight(format, 20, 4096, CPU)
    x = torch.randn(2, 4096).to(torch.bfloat16)
    expected = x.float() @ weight.dequantize(torch.float32).T
    torch.testing.assert_close(kernels.product(weight, x), expected, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("format", LAYOUTS)
@settings(deadline=None, max_examples=8)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 700),
    tokens=st.dictionaries(st.integers(0, 3), st.integers(1, cuda_dequant.MOST_FEW), min_size=1),
)
def test_several_weights_in_one_launch_are_each_times_its_own_rows(
    kernels: DeviceKernels, format: Storage, rows: int, columns: int, tokens: dict[int, int]
) -> None:
    """Some of four experts, in any order, with one row or several."""
    held = experts(format, 4, rows, columns)
    weights, counts = [held[number] for number in tokens], list(tokens.values())
    x = torch.randn(sum(counts), columns, generator=torch.Generator().manual_seed(columns))
    found = kernels.products(weights, kernels.entries(weights, counts), x)
    each = [kernels.product(weight, part) for weight, part in zip(weights, x.split(counts), strict=True)]
    assert torch.equal(found, torch.cat(each))


def test_without_rows_there_is_nothing_to_compute(kernels: DeviceKernels) -> None:
    assert kernels.product(random_weight("int4", 20, 256, CPU), torch.empty(0, 256)).shape == (0, 20)


def experts(format: Storage, count: int, rows: int, columns: int) -> list[QuantizedWeight]:
    """Make different weights in separate memory, as a device holds them."""
    whole = random_weight(format, count * rows, columns, CPU)
    parts = [whole.rows(start, start + rows) for start in range(0, count * rows, rows)]
    return [replace(one, data=one.data.clone(), scales=one.tensors[1].clone()) for one in parts]


@pytest.mark.parametrize("format", ["int8", "int6", "int4"])
def test_a_weight_that_is_no_number_shows(kernels: DeviceKernels, format: Storage) -> None:
    numbers = torch.randn(5, 256)
    numbers[3, 7] = torch.nan
    weight = quantize(numbers, format)
    assert kernels.product(weight, torch.ones(1, 256)).isnan().nonzero().tolist() == [[0, 3]]
    assert kernels.widen(weight).isnan().any(1).nonzero().tolist() == [[3]]


@pytest.mark.parametrize("wrong", ["a product", "a list", "widened rows"])
def test_what_computes_something_else_is_found_out(kernels: DeviceKernels, wrong: str) -> None:
    def launch(name: str, blocks: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        kernels.launch(name, blocks, arguments)
        done = "widened rows" if name.endswith("widen") else "a list" if blocks[1] > 1 else "a product"
        if done == wrong:
            [one for one in arguments if isinstance(one, Tensor)][-1].zero_()

    weight = random_weight("int8", 37, 300, CPU)
    assert agrees(kernels, weight)
    assert not agrees(DeviceKernels(launch), weight)


def test_without_a_card_there_are_none() -> None:
    assert device_kernels(CPU) is None


@pytest.mark.parametrize("architecture", ["gfx906", "gfx90a", "gfx1030"])
def test_they_are_compiled_by_amd_s_compiler_too(architecture: str) -> None:
    try:
        ctypes.CDLL(compile_for_amd.LIBRARY)
    except OSError:
        pytest.skip("AMD's HIP runtime is not installed")
    command = [sys.executable, "-m", compile_for_amd.__name__, architecture]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000


@pytest.mark.gpu
@pytest.mark.parametrize("format", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (37, 300), (4096, 4096), (151_936, 1024)])
def test_on_a_card(format: Storage, rows: int, columns: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no card that torch can use")
    found = device_kernels(torch.device("cuda", 0))
    assert found is not None
    assert agrees(found, random_weight(format, rows, columns, torch.device("cuda", 0)))
