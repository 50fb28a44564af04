"""The thread pool: concurrent calls of the library, each with a changing number of helpers."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
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
LONGEST_S = 240.0
"""A second or two on a computer that does nothing else; a pool that loses a thread never ends."""


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


@pytest.fixture
def hammer(tmp_path: Path) -> Path:
    """pool_hammer.c with the pool, compiled as the library is."""
    compiler = new_compiler()
    customize_compiler(compiler)
    windows = compiler.compiler_type == "msvc"
    sources = [str(SOURCES / "thread_pool.c"), str(Path(__file__).with_name("pool_hammer.c"))]
    options = ["/O2", "/std:c11"] if windows else ["-O2", "-std=gnu11", "-pthread"]
    objects = compiler.compile(sources, str(tmp_path), include_dirs=[str(SOURCES)], extra_postargs=options)
    compiler.link_executable(objects, "hammer", str(tmp_path), extra_postargs=[] if windows else ["-pthread"])
    return tmp_path / compiler.executable_filename("hammer")


def test_every_task_is_done_once_whoever_calls_and_no_helper_is_lost(hammer: Path) -> None:
    done = subprocess.run([hammer], capture_output=True, text=True, timeout=LONGEST_S)
    assert (done.returncode, done.stdout) == (0, "")
