"""Experts that are chosen more often come to the device in place of others, beside the work and one at a time.

The next expert is laid into locked memory by a thread, then copied into spare memory of the device while passes go on;
when it has arrived, between two passes, it is used, and the memory of the one that it replaces is the spare one from
then on. Nothing waits for a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from core.accelerators.base import Accelerator, DeviceEvent
from core.kernels.native_library import copy_past_caches
from core.layers.expert_cache import ExpertCache
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import follow
from core.planning.expert_cache import Exchange, exchange

REMEMBERED = 512
"""Passes after which what was counted before counts half."""


@dataclass(frozen=True)
class _Copy:
    """One exchange: `arrived` is None while the expert's bytes are laid into locked memory."""

    cache: ExpertCache
    exchange: Exchange
    staged: Future[None]
    arrived: DeviceEvent | None = None


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
        self._staging = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._copy: _Copy | None = None
        self._passes = 0

    def step(self) -> None:
        """Between two passes: go on with what is under way, or look at one layer whether something should come."""
        self._passes += 1
        cache = self._caches[self._passes % len(self._caches)]
        if self._passes % REMEMBERED < len(self._caches):
            cache.uses /= 2
        if self._copy is None:
            self._begin(cache)
        elif self._copy.arrived is None:
            self._send(self._copy)
        elif self._copy.arrived.query():
            self._end(self._copy, self._copy.arrived)

    def close(self) -> None:
        """Wait for what is under way, which nobody will use: its memory is given back. Raises DeviceLost."""
        self._copy = None
        self._staging.shutdown()
        self._stream.synchronize()

    def _begin(self, cache: ExpertCache) -> None:
        wanted = None if cache.rests else exchange(cache.uses.tolist(), cache.buffers.keys())
        if wanted is not None:
            weights = [linears[wanted.comes].host for linears in cache.linears]
            self._copy = _Copy(cache, wanted, self._staging.submit(_stage, weights, self._pinned))

    def _send(self, copy: _Copy) -> None:
        if not copy.staged.done():
            return
        copy.staged.result()
        follow(self._accelerator, self._stream)  # the spare memory may still be read
        for pinned, buffer in zip(self._pinned, self._spare, strict=True):
            self._accelerator.copy_async(buffer, pinned, self._stream)
        arrived = self._accelerator.event()
        arrived.record(self._stream)
        self._copy = _Copy(copy.cache, copy.exchange, copy.staged, arrived)

    def _end(self, copy: _Copy, arrived: DeviceEvent) -> None:
        self._copy = None
        self._accelerator.wait(arrived)
        freed = copy.cache.release(copy.exchange.goes)
        copy.cache.hold(copy.exchange.comes, self._spare)
        copy.cache.use.replaced += 1
        self._spare = freed


def _stage(weights: Sequence[HostWeight], buffers: Sequence[Tensor]) -> None:
    """The bytes of each weight into a buffer (nbytes,) of its own, its parts one behind the other."""
    for weight, buffer in zip(weights, buffers, strict=True):
        at = buffer.data_ptr()
        for part in weight.parts(0, weight.rows):
            copy_past_caches(at, part.data_ptr(), part.nbytes)
            at += part.nbytes
