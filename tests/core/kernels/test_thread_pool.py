"""The thread pool: concurrent calls of the library, each with a changing number of helpers."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.kernels.matmul import ChosenMatmul, host_matmul
from core.kernels.native_abi import library_files
from core.kernels.native_library import AttentionCall, native
from core.kernels.quantize import quantize

pytestmark = pytest.mark.skipif(not library_files(), reason="the package was built without a compiler")
CALLERS = 6
ROUNDS = 60
MOST_HELPERS = 9
SOURCES = Path(__file__).parents[3] / "core" / "kernels" / "native"
TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def matmuls() -> list[ChosenMatmul]:
    torch.manual_seed(3)
    weights = [torch.randn(rows, 256) * 0.05 for rows in (33, 256, 700)]
    return [host_matmul(quantize(w.bfloat16(), format)) for w in weights for format in ("int8", "int4", "bf16")]


def attention(keys: int) -> Tensor:
    library = native()
    assert library is not None
    generator = torch.Generator().manual_seed(keys)
    query = torch.randn(1, 8, 1, 64, generator=generator)
    cache = torch.randn(2, 1, 2, keys, 64, generator=generator)
    return library.attention(AttentionCall(query, cache[0], cache[1], None, None, 0.125, 0.0))


def test_callers_at_once_with_changing_numbers_of_threads_get_what_one_alone_gets() -> None:
    torch.set_num_threads(1)
    made = matmuls()
    inputs = {m: torch.randn(m, 256) for m in (1, 4, 20)}
    expected = {(i, m): matmul(x) for i, matmul in enumerate(made) for m, x in inputs.items()}
    long = attention(3000)

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(ROUNDS):
            torch.set_num_threads(rng.randint(1, MOST_HELPERS))
            i, m = rng.choice(list(expected))
            torch.testing.assert_close(made[i](inputs[m]), expected[i, m])
            if rng.random() < 0.3:
                torch.testing.assert_close(attention(3000), long)

    with ThreadPoolExecutor(CALLERS) as pool:
        for done in [pool.submit(call, seed) for seed in range(CALLERS)]:
            done.result()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the other tests run this pool, or gcc is no gcc")
@pytest.mark.parametrize("options", [["-fopenmp"], []], ids=["OpenMP", "no threads"])
@pytest.mark.parametrize(("count", "threads"), [(0, 3), (1, 3), (200, 1), (200, 3)])
def test_elsewhere_than_on_linux_and_macos_every_task_is_done_once(
    tmp_path: Path, options: list[str], count: int, threads: int
) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to compile the pool as for another system")
    built = tmp_path / "pool.so"
    command = [compiler, "-U__linux__", "-shared", "-fPIC", *options, SOURCES / "thread_pool.c", "-o", built]
    subprocess.run(command, check=True)
    done: list[tuple[int, int]] = []
    ctypes.CDLL(str(built)).pool_run(
        TASK(lambda _, index, worker: done.append((index, worker))), None, ctypes.c_int64(count), threads
    )
    assert sorted(index for index, _ in done) == list(range(count))
    assert all(0 <= worker < threads for _, worker in done)


def test_loops_for_openmp_declare_nothing_which_microsofts_compiler_refuses() -> None:
    loops = [
        found for file in SOURCES.glob("*.[ch]")
        for found in re.findall(r"#pragma omp parallel for.*\n\s*for \((.*);.*;", file.read_text("utf-8"))
    ]  # fmt: skip
    assert loops
    assert not [loop for loop in loops if re.match(r"\w+ \w", loop)]
