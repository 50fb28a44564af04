"""Checks of a card, run in a separate process: a matrix product, copies, our own kernels, graphs."""

from __future__ import annotations

import time

import torch

from core.accelerators.capabilities import has_unified_memory, name_of
from core.accelerators.card import Card
from core.accelerators.trial import Trial
from core.errors import HeteGenError
from core.kernels.cuda_dequant import device_kernels
from core.kernels.torch_products import torch_int4, torch_int8
from core.units import MIB

SIDE, COPY = 512, 16 * MIB
TOLERANCE = 0.02
"""Largest error of a product relative to its largest element; rounding to bf16 stays below it."""


def try_card(device: torch.device) -> Trial:
    """Run all checks in this process. Raises HeteGenError, RuntimeError."""
    card = Card(device)
    if not multiplies(card):
        return Trial("It multiplied wrongly when it was tried.", name_of(device), device.type)
    up_s, down_s, whole = copies(card)
    if not whole:
        return Trial("Copies to it and back came back changed when it was tried.", name_of(device), device.type)
    own = card.can.own_kernels and device_kernels(device) is not None
    found = Trial(
        "", name_of(device), device.type, has_unified_memory(device), own, torch_int8(device) is not None,
        torch_int4("int4", device) is not None, COPY / up_s, COPY / down_s,
    )  # fmt: skip
    card.close()
    return found


def multiplies(card: Card) -> bool:
    """Return whether a bf16 product agrees with that of the CPU."""
    left, right = (torch.randn(SIDE, SIDE).bfloat16() for _ in range(2))
    found = card.to_host(card.to_device(left) @ card.to_device(right)).result()
    return _agree(found.float(), left.float() @ right.float())


def copies(card: Card) -> tuple[float, float, bool]:
    """Return the seconds of a copy up and down, and whether all bytes were intact; ordered by events alone."""
    source, back, there = card.pinned(COPY), card.pinned(COPY), card.empty((COPY,), torch.uint8)
    source.copy_(torch.randint(0, 256, (COPY,), dtype=torch.uint8))
    up, down, arrived, read = card.stream(), card.stream(), card.event(), card.event()
    card.synchronize()
    start = time.perf_counter()
    card.copy_async(there, source, up)
    arrived.record(up)
    card.wait(arrived)
    doubled: list[torch.Tensor] = []
    card.launch(lambda: doubled.append(there + 1))
    card.record(read)
    arrived.synchronize()
    arrived_s = time.perf_counter() - start
    down.wait(read)
    start = time.perf_counter()
    card.copy_async(back, doubled[0], down)
    down.synchronize()
    return arrived_s, time.perf_counter() - start, torch.equal(back, source + 1)


def replays(card: Card) -> bool:
    """Return whether a product and a sum can be captured in a graph and replayed with another input."""
    first, other, right = (torch.randn(SIDE, SIDE).bfloat16() for _ in range(3))
    there = card.to_device(right)
    try:
        replay = card.captured(lambda _, left: left @ there + 1, [first])
        found = None if replay is None else card.to_host(replay(other)).result()
    except (HeteGenError, RuntimeError):
        return False
    return found is not None and _agree(found.float(), other.float() @ right.float() + 1)


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
