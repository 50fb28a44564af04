"""Checks of a card, run in a separate process: a matrix product, copies, our own kernels, graphs, shared memory."""

from __future__ import annotations

import mmap
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

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
HEADER, PASSES, SLOWER = 8, 8, 1.5
"""Bytes before the first tensor of a model's file; products to time; longest time in terms of that of a copy."""


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


def reads_in_place(card: Card) -> bool:
    """Return whether the card reads weights in ordinary memory and in a mapped file correctly and as fast as copies."""
    weight, x = torch.randn(SIDE * PASSES, SIDE).bfloat16(), torch.randn(1, SIDE).bfloat16()
    expected, there = x.float() @ weight.float().T, card.to_device(x)
    try:
        copied_s = _product_s(card, there, card.to_device(weight))
        with _mapped(weight) as mapped:
            for lying in (weight, mapped):
                shared = card.in_place(lying)
                found = card.to_host(F.linear(there, shared)).result()
                if not _agree(found.float(), expected) or _product_s(card, there, shared) > SLOWER * copied_s:
                    return False
                del shared
                card.synchronize()
    except (HeteGenError, RuntimeError):
        return False
    return True


def _product_s(card: Card, x: Tensor, weight: Tensor) -> float:
    """Return the seconds of the fastest of some products."""
    found = []
    for _ in range(PASSES):
        card.synchronize()
        start = time.perf_counter()
        F.linear(x, weight)
        card.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


@contextmanager
def _mapped(weight: Tensor) -> Iterator[Tensor]:
    """Provide the weight as it lies in a model's file: mapped, read-only, and not at the start of a page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder, "weight")
        file.write_bytes(bytes(HEADER) + weight.view(torch.uint8).numpy().tobytes())
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns that the buffer is read-only
            flat = torch.frombuffer(mapped, dtype=weight.dtype, offset=HEADER)
        yield flat.view(weight.shape)


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
