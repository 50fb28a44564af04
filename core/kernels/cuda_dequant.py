"""Products with quantised rows that lie on a graphics card: kernels of our own, compiled there at first use.

torch can only widen such rows first, which reads and writes several times what the rows weigh. NVRTC (or HIPRTC) comes
with every build of torch for a card, so no toolkit is needed. What was compiled is tried against torch's own arithmetic
before it is used; where anything is missing or wrong, widening serves, and is slower.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.kernels.native_abi import LAYOUT_BITS, format_number
from core.kernels.quantized_weight import QuantizedWeight, Scales, empty, scale_rows
from core.spec import LAYOUTS, Storage

MOST_ROWS = 8
"""Rows of input that one product takes, as in device.cu; with more of them, widening first costs less."""
THREADS, ROWS_PER_BLOCK, CHUNK_BYTES = 128, 16, 16
OWN: Storage = "int8"
"""The storage that has kernels to itself; all others share one that is told how they lie."""
KERNELS = ("int8_product", "grouped_product", "int8_widen", "grouped_widen")
AGREES = 0.01
"""Largest error, as a fraction of the largest output; rounding weights to bf16 makes far less of a sound result."""

Launch = Callable[[str, int, Sequence[Tensor | int]], None]
"""(kernel, blocks, arguments): enqueues it on the current stream of its card."""


class DeviceKernels:
    """The compiled kernels of one card."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def takes(self, x: Tensor) -> bool:
        """Whether `product` takes so many rows of input (M, K)."""
        return x.shape[0] <= MOST_ROWS

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        """x (M, K), M <= MOST_ROWS, of any floating type, times the weight (N, K): (M, N) of fp32."""
        rows, width = weight.shape[0], _width(weight)
        y = torch.empty(x.shape[0], rows, device=x.device)
        self._run("product", weight, -(-rows // ROWS_PER_BLOCK), _padded(x, width), y, rows, width, x.shape[0])
        return y

    def widen(self, weight: QuantizedWeight) -> Tensor:
        """The weight as bf16 (N, K)."""
        rows = weight.shape[0]
        wide = torch.empty(rows, _width(weight), dtype=torch.bfloat16, device=weight.data.device)
        blocks = -(-weight.data.nbytes // (CHUNK_BYTES * THREADS))
        self._run("widen", weight, blocks, wide, rows, _width(weight))
        return wide[:, : weight.shape[1]]

    def _run(self, name: str, weight: QuantizedWeight, blocks: int, *arguments: Tensor | int) -> None:
        if weight.format == OWN:
            self._launch(f"{weight.format}_{name}", blocks, [*weight.tensors, *arguments])
        else:
            layout = format_number(weight.format) >> LAYOUT_BITS
            self._launch(f"grouped_{name}", blocks, [*weight.tensors, *arguments, layout])


@cache
def device_kernels(device: torch.device) -> DeviceKernels | None:
    """The kernels for this card; None, with a line in the log, where they cannot be had or compute something else."""
    if device.type != "cuda":
        return None
    try:
        kernels = DeviceKernels(_launcher(device))
        wrong = [name for name in LAYOUTS if not agrees(kernels, random_weight(name, 37, 300, device))]
    # Private parts of torch and libraries of the driver: whatever they lack, there is the slower way.
    except (RuntimeError, OSError, AttributeError, ImportError, KeyError) as error:
        logging.getLogger(__name__).warning("no kernels for %s: %s", device, error)
        return None
    if wrong:
        logging.getLogger(__name__).warning("the kernels for %s compute something else in %s", device, wrong)
        return None
    return kernels


def agrees(kernels: DeviceKernels, weight: QuantizedWeight) -> bool:
    """Whether products and widened rows are those of torch for this weight."""
    device = weight.data.device
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(device)
    expected = x @ weight.dequantize(torch.float32).T
    found = [kernels.product(weight, x), x @ kernels.widen(weight).float().T]
    return all(bool((one - expected).abs().max() <= AGREES * expected.abs().max()) for one in found)


def random_weight(format: Storage, rows: int, columns: int, device: torch.device) -> QuantizedWeight:
    """A weight of random bytes and scales, as `weights` lays it out."""
    generator = torch.Generator().manual_seed(1)
    layout = LAYOUTS[format]
    if format != OWN:
        like = empty(format, rows, columns)
        assert like.scales is not None
        data = torch.randint(0, 256, like.data.shape, generator=generator, dtype=torch.uint8).view(like.data.dtype)
        if layout.floats:
            data &= ~1  # without NaN
        groups, coarse = (rows, layout.groups(columns)), (rows, layout.coarse(columns))

        def numbers() -> Scales:
            if layout.scale != "fine":
                return torch.rand(groups, generator=generator)
            fine = torch.randint(-32, 64, groups, generator=generator, dtype=torch.int8)
            return fine, torch.rand(coarse, generator=generator) / 32

        scales = scale_rows(layout, layout.columns(columns), numbers(), numbers() if layout.minimum else None)
    else:
        data = torch.randint(-127, 128, (rows, LAYOUTS[format].columns(columns)), generator=generator, dtype=torch.int8)
        scales = torch.rand(rows, generator=generator)
    return QuantizedWeight(format, (rows, columns), data.to(device), scales.to(device))


def _padded(x: Tensor, width: int) -> Tensor:
    """x (M, K) as fp32 (M, width), zeros beyond K; a tensor of its own, for the kernels read 16 bytes at a time."""
    make = torch.empty if x.shape[1] == width else torch.zeros
    wide = make(x.shape[0], width, device=x.device)
    wide[:, : x.shape[1]] = x
    return wide


def _width(weight: QuantizedWeight) -> int:
    """Columns of a padded row."""
    return weight.data.shape[1] * 8 // LAYOUTS[weight.format].bits


def _launcher(device: torch.device) -> Launch:
    """Compile for this card and load. Raises RuntimeError, OSError, AttributeError."""
    from torch.cuda._utils import _cuda_load_module

    with torch.cuda.device(device):
        loaded: Any = _cuda_load_module(_compile(device), list(KERNELS))

    def launch(name: str, blocks: int, arguments: Sequence[Tensor | int]) -> None:
        with torch.cuda.device(device):
            loaded[name](grid=(blocks, 1, 1), block=(THREADS, 1, 1), args=list(arguments))

    return launch


def _compile(device: torch.device) -> bytes:
    from torch.cuda._utils import _get_gpu_rtc_library

    properties = torch.cuda.get_device_properties(device)
    architecture = f"--gpu-architecture=sm_{properties.major}{properties.minor}"
    if torch.version.hip:
        architecture = f"--offload-arch={properties.gcnArchName}"
    return compile_source(_get_gpu_rtc_library(), architecture)


def compile_source(library: Any, architecture: str) -> bytes:
    """device.cu as machine code, by NVRTC or what has its calls. Raises RuntimeError with the compiler's words."""
    source = Path(__file__).with_name("device.cu").read_bytes()
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source, b"device.cu", 0, None, None))
    try:
        options = (ctypes.c_char_p * 1)(architecture.encode())
        if library.nvrtcCompileProgram(program, 1, options):
            raise RuntimeError(_bytes(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode())
        return _bytes(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(size_of: Any, content_of: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(content_of(program, content))
    return content.raw


def _check(result: int) -> None:
    if result:
        raise RuntimeError(f"the card's compiler failed with {result}")
