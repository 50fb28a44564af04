"""The number of threads that torch's own operations use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Context: torch computes in the calling thread only. Waking its other threads takes about 100 us, longer than an
    operation on the logits of a single token."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
