"""A copy in RAM of a KV cache that lies on a device, for a draft model that computes on the CPU."""

from __future__ import annotations

from itertools import compress

import torch
from torch import Tensor

from core.accelerators.base import Accelerator, taken_apart
from core.layers.kv_cache import KVCache, common_prefix
from core.layers.kv_layers import PreallocatedLayer, on_host

AT_ONCE = 32
"""Tokens that are copied in one transfer: they are laid together on the device first, which takes memory there."""


class MirroredCache:
    """A KV cache as the CPU can read it: `source` itself while it lies in RAM, otherwise `own`, which follows it.

    All layers hold plain keys and values of all tokens. Only what was added since is copied.
    """

    def __init__(self, source: KVCache, own: KVCache, accelerator: Accelerator) -> None:
        """`own`: an empty cache in RAM, or one that mirrored another conversation; `accelerator` holds `source`."""
        self._source, self.own = source, own
        self._accelerator = accelerator

    # States were made in inference mode and may only be written to in it.
    @torch.inference_mode()
    def current(self) -> KVCache:
        """Return a cache in RAM with all tokens of the source. Raises DeviceLost, NotEnoughMemory."""
        source, own = self._source, self.own
        if not source.away:
            return source
        known, end = own.rewind(common_prefix(own.tokens, source.tokens)), len(source.tokens)
        with self._accelerator.failures():
            for start in range(known, end, AT_ONCE):
                self._copy(start, min(start + AT_ONCE, end))
        return own

    def _copy(self, start: int, end: int) -> None:
        """Append the states of these tokens to `own`."""
        layers = _with_states(self._source)
        away = [layer.allocate is not on_host for layer in layers]
        states = [[one[:, :, start:end] for one in layer.tensors] for layer in layers]
        arrived = iter(self._brought([one for pair in compress(states, away) for one in pair]))
        for layer, is_away, (keys, values) in zip(_with_states(self.own), away, states, strict=True):
            layer.update(*((next(arrived), next(arrived)) if is_away else (keys, values)))
        self.own.tokens += self._source.tokens[start:end]

    def _brought(self, states: list[Tensor]) -> list[Tensor]:
        """Copy states (1, H, n, D) from the device to RAM in one transfer."""
        whole = torch.cat([one.reshape(-1) for one in states])
        return taken_apart(self._accelerator.to_host(whole).result(), states)


def _with_states(cache: KVCache) -> list[PreallocatedLayer]:
    """Return the layers with keys and values; the others are placeholders."""
    return [layer for layer in cache.layers if isinstance(layer, PreallocatedLayer)]
