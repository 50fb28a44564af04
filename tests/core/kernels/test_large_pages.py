"""Memory of weights: pages of 2 MiB if the system has them, nothing shared, everything freed."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import psutil
import pytest
import torch

from core.kernels.large_pages import CHUNK, PAGE, empty_on_large_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_page_bytes() -> int:
    """Return the bytes of this process's anonymous memory in large pages."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the system has no large pages")
@pytest.mark.parametrize("count", [1, 64])
def test_weights_lie_in_large_pages(count: int) -> None:
    """One large weight, and small ones that share pages."""
    before, nbytes = large_page_bytes(), 4 * CHUNK // count
    kept = [empty_on_large_pages((nbytes,), torch.uint8).fill_(1) for _ in range(count)]
    assert large_page_bytes() - before >= 3 * CHUNK
    del kept


def test_pieces_do_not_overlap() -> None:
    sizes = [(3, 5), (1, 1), (700, 800), (0, 7), (17,), (4, 9, 2)]
    kept = [empty_on_large_pages(size, torch.float32).fill_(number) for number, size in enumerate(sizes)]
    for number, (size, tensor) in enumerate(zip(sizes, kept, strict=True)):
        assert tensor.shape == size
        assert tensor.dtype is torch.float32
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == number).all()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is the C library's elsewhere")
@pytest.mark.parametrize("nbytes", [4 * CHUNK, PAGE // 2])
def test_memory_is_given_back(nbytes: int) -> None:
    own, total = psutil.Process(), 4 * CHUNK
    kept = [empty_on_large_pages((nbytes,), torch.uint8).fill_(1) for _ in range(total // nbytes)]
    held = own.memory_info().rss
    del kept
    assert held - own.memory_info().rss > total - 2 * CHUNK


def test_systems_without_large_pages_have_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert empty_on_large_pages((2, CHUNK), torch.int8).fill_(3).sum() == 6 * CHUNK
