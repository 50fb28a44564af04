"""Experts that are chosen more often come to the device in place of others, beside the work and one at a time.

The next expert is copied into spare memory while passes go on; when it has arrived, between two passes, it is used,
and the memory of the one that it replaces is the spare one from then on. Nothing waits for a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.accelerators.base import Accelerator, DeviceEvent
from core.layers.expert_cache import ExpertCache
from core.offload.parameter_manager import follow
from core.planning.expert_cache import Exchange, exchange

REMEMBERED = 512
"""Passes after which what was counted before counts half."""


@dataclass(frozen=True)
class _Copy:
    cache: ExpertCache
    exchange: Exchange
    arrived: DeviceEvent


class ExpertExchanges:
    """Exchanges in all layers whose experts are as large as the first one's."""

    def __init__(self, caches: Sequence[ExpertCache], accelerator: Accelerator) -> None:
        """Takes memory for one expert on the device, and as much that is pinned. Raises NotEnoughMemory."""
        sizes = caches[0].expert_bytes
        self._caches = [cache for cache in caches if cache.expert_bytes == sizes]
        self._accelerator = accelerator
        self._stream = accelerator.stream()
        self._spare = [accelerator.empty((nbytes,), torch.uint8) for nbytes in sizes]
        self._pinned = [accelerator.pinned(nbytes) for nbytes in sizes]
        self._copy: _Copy | None = None
        self._passes = 0

    def step(self) -> None:
        """Between two passes: use what has arrived, or look at one layer whether something should come."""
        self._passes += 1
        cache = self._caches[self._passes % len(self._caches)]
        if self._passes % REMEMBERED < len(self._caches):
            cache.uses /= 2
        if self._copy is None:
            self._begin(cache)
        elif self._copy.arrived.query():
            self._end(self._copy)

    def close(self) -> None:
        """Wait for what is under way, which nobody will use: its memory is given back. Raises DeviceLost."""
        self._copy = None
        self._stream.synchronize()

    def _begin(self, cache: ExpertCache) -> None:
        wanted = exchange(cache.uses.tolist(), cache.buffers.keys())
        if wanted is None:
            return
        follow(self._accelerator, self._stream)  # the spare memory may still be read
        for linears, pinned, buffer in zip(cache.linears, self._pinned, self._spare, strict=True):
            weight = linears[wanted.comes].host
            _stage(weight.parts(0, weight.rows), pinned)
            self._accelerator.copy_async(buffer, pinned, self._stream)
        arrived = self._accelerator.event()
        arrived.record(self._stream)
        self._copy = _Copy(cache, wanted, arrived)

    def _end(self, copy: _Copy) -> None:
        self._copy = None
        self._accelerator.wait(copy.arrived)
        freed = copy.cache.release(copy.exchange.goes)
        copy.cache.hold(copy.exchange.comes, self._spare)
        copy.cache.use.replaced += 1
        self._spare = freed


def _stage(parts: Sequence[Tensor], pinned: Tensor) -> None:
    """The parts' bytes, one behind the other."""
    at = 0
    for part in parts:
        pinned[at : at + part.nbytes].copy_(part.reshape(-1).view(torch.uint8))
        at += part.nbytes
