"""Matrix products with quantised weights on a GPU: our own kernels, compiled at first use.

torch alone would have to dequantise the rows first, which reads and writes several times their size. NVRTC (or HIPRTC)
ships with every GPU build of torch, so no toolkit is needed. The compiled kernels are checked against torch before they
are used; if anything is missing or wrong, the slower dequantisation is used instead.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.kernels.native_abi import LAYOUT_BITS, format_number
from core.kernels.quantized_weight import QuantizedWeight, Scales, empty, scale_rows
from core.spec import BUCKET_LIMITS, FEW, LAYOUTS, Storage

MOST_ROWS = 8
"""Input rows per weight and launch, as in device.cu."""
MOST_FEW = BUCKET_LIMITS[FEW]
"""Input rows per weight in all; with more rows, dequantising first is cheaper."""
THREADS, ROWS_PER_BLOCK, CHUNK_BYTES = 128, 16, 16
LISTED = -1
"""In place of the number of rows of x: tells the kernel that it gets a list of weights."""
OWN: Storage = "int8"
"""The storage with a dedicated kernel; all others share one kernel that takes the layout as an argument."""
KERNELS = ("int8_product", "grouped_product", "int8_widen", "grouped_widen")
AGREES = 0.01
"""Maximum error as a fraction of the largest output; rounding weights to bf16 stays far below it."""

Launch = Callable[[str, tuple[int, int], Sequence[Tensor | int]], None]
"""(kernel name, blocks in x and y, arguments): launches the kernel on the current stream of its GPU."""


class DeviceKernels:
    """The compiled kernels of one GPU, for any number of rows."""

    step = 1

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def takes(self, x: Tensor) -> bool:
        """Return whether `product` accepts an input (M, K) of this many rows."""
        return x.shape[0] <= MOST_FEW

    def product(self, weight: QuantizedWeight, x: Tensor) -> Tensor:
        """Return x (M, K), M <= MOST_FEW, any floating type, times the transposed weight (N, K), as (M, N) of fp32."""
        rows, width = weight.shape[0], _width(weight)
        y = torch.empty(x.shape[0], rows, device=x.device)
        blocks = -(-rows // ROWS_PER_BLOCK), 1
        for some, to in zip(torch.split(_padded(x, width), MOST_ROWS), torch.split(y, MOST_ROWS), strict=True):
            self._run("product", weight, blocks, [*weight.tensors, some, to, rows, width, len(some)])
        return y

    def entries(self, weights: Sequence[QuantizedWeight], counts: Sequence[int]) -> Tensor:
        """Return the list (n, 4) on the host that `products` reads on the GPU: each weight's addresses, and which rows
        of x it is for, the next `counts` of them."""
        firsts = accumulate(counts, initial=0)
        addresses = ([part.data_ptr() for part in weight.tensors] for weight in weights)
        listed = zip(addresses, firsts, counts, strict=False)
        return torch.tensor([[*both, *rows] for both, first, count in listed for rows in _spans(first, count)])

    def products(self, weights: Sequence[QuantizedWeight], entries: Tensor, x: Tensor) -> Tensor:
        """Return rows of x (M, K), each times the transposed weight of its entry, as (M, N) of fp32, in one launch.
        At most MOST_FEW rows for each weight; all weights have one shape and format."""
        rows, width = weights[0].shape[0], _width(weights[0])
        y = torch.empty(x.shape[0], rows, device=x.device)
        blocks = -(-rows // ROWS_PER_BLOCK), len(entries)
        self._run("product", weights[0], blocks, [entries, entries, _padded(x, width), y, rows, width, LISTED])
        return y

    def widen(self, weight: QuantizedWeight, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return the dequantised weight (N, K), rounded to bf16, in this type."""
        rows = weight.shape[0]
        wide = torch.empty(rows, _width(weight), dtype=torch.bfloat16, device=weight.data.device)
        blocks = -(-weight.data.nbytes // (CHUNK_BYTES * THREADS))
        self._run("widen", weight, (blocks, 1), [*weight.tensors, wide, rows, _width(weight)])
        return wide[:, : weight.shape[1]].to(dtype)

    def _run(
        self, name: str, weight: QuantizedWeight, blocks: tuple[int, int], arguments: Sequence[Tensor | int]
    ) -> None:
        if weight.format == OWN:
            self.launch(f"{OWN}_{name}", blocks, arguments)
        else:
            layout = format_number(weight.format) >> LAYOUT_BITS
            self.launch(f"grouped_{name}", blocks, [*arguments, layout])


@cache
def device_kernels(device: torch.device) -> DeviceKernels | None:
    """Return the kernels for this GPU; None, with a log line, if they cannot be built or compute wrong results."""
    if device.type != "cuda":
        return None
    try:
        kernels = DeviceKernels(_launcher(device))
        wrong = [name for name in LAYOUTS if not agrees(kernels, random_weight(name, 37, 300, device))]
    # This uses private parts of torch and libraries of the driver: if any is missing, the slower path remains.
    except (RuntimeError, OSError, AttributeError, ImportError, KeyError) as error:
        logging.getLogger(__name__).warning("no kernels for %s: %s", device, error)
        return None
    if wrong:
        logging.getLogger(__name__).warning("the kernels for %s compute something else in %s", device, wrong)
        return None
    return kernels


def agrees(kernels: DeviceKernels, weight: QuantizedWeight) -> bool:
    """Return whether products and dequantised rows match torch's for this weight."""
    device = weight.data.device
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(device)
    expected = x @ weight.dequantize(torch.float32).T
    entries = kernels.entries([weight, weight], [1, 2]).to(device)
    found = [
        kernels.product(weight, x), kernels.products([weight, weight], entries, x), x @ kernels.widen(weight).float().T,
    ]  # fmt: skip
    return all(bool((one - expected).abs().max() <= AGREES * expected.abs().max()) for one in found)


def random_weight(format: Storage, rows: int, columns: int, device: torch.device) -> QuantizedWeight:
    """Return a weight of random bytes and scales in the layout of `quantized_weight`."""
    generator = torch.Generator().manual_seed(1)
    layout = LAYOUTS[format]
    if format != OWN:
        like = empty(format, rows, columns)
        assert like.scales is not None
        data = torch.randint(0, 256, like.data.shape, generator=generator, dtype=torch.uint8).view(like.data.dtype)
        if layout.floats:
            data &= ~1  # clears the last bit, so that no value is NaN
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


def _spans(first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield first rows and numbers of rows, at most MOST_ROWS each, of `count` rows from `first` on."""
    for at in range(0, count, MOST_ROWS):
        yield first + at, min(MOST_ROWS, count - at)


def _padded(x: Tensor, width: int) -> Tensor:
    """Return x (M, K) as fp32 (M, width), zero beyond K; always a new, aligned tensor: kernels load 16 bytes at
    once."""
    make = torch.empty if x.shape[1] == width else torch.zeros
    wide = make(x.shape[0], width, device=x.device)
    wide[:, : x.shape[1]] = x
    return wide


def _width(weight: QuantizedWeight) -> int:
    """Return the number of columns of a padded row."""
    return weight.data.shape[1] * 8 // LAYOUTS[weight.format].bits


def _launcher(device: torch.device) -> Launch:
    """Compile the kernels for this GPU and load them. Raises RuntimeError, OSError, AttributeError."""
    from torch.cuda._utils import _cuda_load_module

    with torch.cuda.device(device):
        loaded: Any = _cuda_load_module(_compile(device), list(KERNELS))

    def launch(name: str, blocks: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        with torch.cuda.device(device):
            loaded[name](grid=(*blocks, 1), block=(THREADS, 1, 1), args=list(arguments))

    return launch


def _compile(device: torch.device) -> bytes:
    from torch.cuda._utils import _get_gpu_rtc_library

    properties = torch.cuda.get_device_properties(device)
    architecture = f"--gpu-architecture=sm_{properties.major}{properties.minor}"
    if torch.version.hip:
        architecture = f"--offload-arch={properties.gcnArchName}"
    return compile_source(_get_gpu_rtc_library(), architecture)


def compile_source(library: Any, architecture: str) -> bytes:
    """Compile device.cu with NVRTC or a library with its API. Raises RuntimeError with the compiler's message."""
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
