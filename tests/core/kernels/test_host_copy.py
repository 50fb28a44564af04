"""Copies by several threads: every byte once, and nothing else."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.kernels.host_copy import LEAST_STRIP, CopyPool, strips

SIZES = st.one_of(st.integers(0, 5000), st.integers(0, 12 * LEAST_STRIP))


@given(nbytes=SIZES, most=st.integers(1, 9))
def test_strips_cover_everything_once(nbytes: int, most: int) -> None:
    found = list(strips(nbytes, most))
    assert 1 <= len(found) <= most
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == nbytes


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (3000, 700), (7, 300_000)])
def test_rows_that_lie_apart_are_laid_end_to_end(threads: int, rows: int, columns: int) -> None:
    source = torch.randint(0, 255, (rows, columns + 33), dtype=torch.uint8)
    target = torch.full((rows * columns + 64,), 7, dtype=torch.uint8)
    copiers = CopyPool(threads)
    for part in (source[:, 20 : 20 + columns], source[:, :columns].contiguous()):
        copiers.lay(target.data_ptr() + 16, part)
        assert torch.equal(target[16:-48].view(rows, columns), part)
    copiers.close()
    assert bool((target[:16] == 7).all())
    assert bool((target[-48:] == 7).all())


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("nbytes", [0, 1, LEAST_STRIP - 1, 3 * LEAST_STRIP + 17, 9 * LEAST_STRIP])
def test_what_is_copied_is_the_same(threads: int, nbytes: int) -> None:
    before = set(threading.enumerate())
    source = torch.randint(0, 255, (nbytes + 64,), dtype=torch.uint8)
    target = torch.full((nbytes + 64,), 7, dtype=torch.uint8)
    copiers = CopyPool(threads)
    copiers.copy(target.data_ptr() + 16, source.data_ptr(), nbytes)
    copiers.close()
    assert torch.equal(target[16 : nbytes + 16], source[:nbytes])
    assert bool((target[:16] == 7).all())
    assert bool((target[nbytes + 16 :] == 7).all())
    assert set(threading.enumerate()) <= before
