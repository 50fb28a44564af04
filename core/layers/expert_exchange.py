"""Exchanges experts on the device for more frequently used ones, asynchronously and a few at a time.

A thread copies the next expert into pinned memory, from where it is copied to a spare buffer of the device while passes
continue. Between two passes after its arrival, it replaces another expert, whose memory becomes the spare buffer. No
pass ever waits for a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.accelerators.base import Accelerator, DeviceEvent
from core.kernels.native_copy import copy_past_caches
from core.layers.expert_cache import ExpertCache
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import follow
from core.planning.expert_cache import Exchange, exchange

REMEMBERED = 512
"""Number of passes after which earlier counts are halved."""
AT_ONCE = 3
"""Number of concurrent exchanges, each in a different layer."""
LOOKED_AT = 4
"""Largest number of layers to examine after a pass."""


@dataclass
class _Lane:
    """Device buffers and pinned buffers for one expert, one per linear, and the exchange in progress there."""

    spare: list[Tensor]
    pinned: list[Tensor]
    copy: _Copy | None = None


@dataclass(frozen=True)
class _Copy:
    """An exchange. `arrived` is None while the expert's bytes are being staged in pinned memory."""

    cache: ExpertCache
    exchange: Exchange
    staged: Future[None]
    arrived: DeviceEvent | None = None


class ExpertExchanges:
    """Exchanges in all layers whose experts have the same size as those of the first one."""

    def __init__(self, caches: Sequence[ExpertCache], accelerator: Accelerator) -> None:
        """Allocate device memory for AT_ONCE experts, and as much pinned memory. Raises NotEnoughMemory."""
        sizes = caches[0].expert_bytes
        self._caches = [cache for cache in caches if cache.expert_bytes == sizes]
        self._accelerator = accelerator
        self._stream = accelerator.stream()
        self._lanes = [
            _Lane(
                [accelerator.empty((nbytes,), torch.uint8) for nbytes in sizes],
                [accelerator.pinned(nbytes) for nbytes in sizes],
            )
            for _ in range(AT_ONCE)
        ]
        self._staging = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._passes = self._looked_at = 0

    def step(self) -> None:
        """Advance exchanges in progress between two passes, and examine some layers for new ones."""
        self._passes += 1
        if self._passes % REMEMBERED == 0:
            for cache in self._caches:
                cache.uses /= 2
        for lane in self._lanes:
            if lane.copy is not None:
                self._go_on(lane, lane.copy)
        free = next((lane for lane in self._lanes if lane.copy is None), None)
        if free is not None:
            looks = (self._begun(free) for _ in range(min(LOOKED_AT, len(self._caches))))
            free.copy = next((copy for copy in looks if copy is not None), None)

    def close(self) -> None:
        """Wait for copies in flight, whose memory is about to be freed. Raises DeviceLost."""
        self._staging.shutdown()
        self._stream.synchronize()

    def _begun(self, lane: _Lane) -> _Copy | None:
        """Start the exchange that the next layer needs; None if it needs none."""
        self._looked_at += 1
        cache = self._caches[self._looked_at % len(self._caches)]
        busy = any(one.copy is not None and one.copy.cache is cache for one in self._lanes)
        wanted = None if cache.rests or busy else exchange(cache.uses.tolist(), cache.buffers.keys())
        if wanted is None:
            return None
        weights = [linears[wanted.comes].host for linears in cache.linears]
        return _Copy(cache, wanted, self._staging.submit(_stage, weights, lane.pinned))

    def _go_on(self, lane: _Lane, copy: _Copy) -> None:
        if copy.arrived is None:
            if copy.staged.done():
                copy.staged.result()
                lane.copy = replace(copy, arrived=self._sent(lane))
        elif copy.arrived.query():
            freed = copy.cache.release(copy.exchange.goes)
            copy.cache.hold(copy.exchange.comes, lane.spare)
            copy.cache.use.replaced += 1
            lane.spare, lane.copy = freed, None

    def _sent(self, lane: _Lane) -> DeviceEvent:
        follow(self._accelerator, self._stream)  # the spare memory may still be read
        for pinned, buffer in zip(lane.pinned, lane.spare, strict=True):
            self._accelerator.copy_async(buffer, pinned, self._stream)
        arrived = self._accelerator.event()
        arrived.record(self._stream)
        return arrived


def _stage(weights: Sequence[HostWeight], buffers: Sequence[Tensor]) -> None:
    """Copy each weight's parts end to end into its buffer (nbytes,)."""
    for weight, buffer in zip(weights, buffers, strict=True):
        at = buffer.data_ptr()
        for part in weight.parts(0, weight.rows):
            copy_past_caches(at, part.data_ptr(), part.nbytes)
            at += part.nbytes
