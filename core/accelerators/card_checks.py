"""The steps of a card's trial, run in a separate process: a matrix product, copies, and each faster way of computing.

After each faster way the card must still multiply: a fault may show only in what comes later, and must not be taken for
that one's.
"""

from __future__ import annotations

import mmap
import tempfile
import time
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.accelerators.capabilities import has_unified_memory, name_of
from core.accelerators.card import Card
from core.accelerators.trial import Step, Trial
from core.errors import HeteGenError
from core.kernels.cuda_dequant import device_kernels
from core.kernels.torch_products import try_int4, try_int8
from core.spec import Attempt, TorchProduct
from core.units import MIB

SIDE, COPY = 512, 16 * MIB
TOLERANCE = 0.02
"""Largest error of a product relative to its largest element; rounding to bf16 stays below it."""
HEADER, PASSES, SLOWER = 8, 8, 1.5
"""Bytes before the first tensor of a model's file; products to time; longest time in terms of that of a copy."""


Taken = Callable[[Card, Trial], Trial]
"""A step: (card, what was found so far) -> what is found now; the same if the card is not able to do it."""


def not_said(step: Step) -> None:
    """Say nothing of a step."""


def try_card(device: torch.device, without: Container[str] = (), say: Callable[[Step], None] = not_said) -> Trial:
    """Take all steps in this process, but none of those in `without`; `say` is called before each.

    Raises HeteGenError, RuntimeError.
    """
    say(Step("the start"))
    card = Card(device)
    trial = Trial("", name_of(device), device.type, has_unified_memory(device))
    for name, take in NEEDED.items():
        say(Step(name))
        trial = take(card, trial)
        if trial.why:
            return trial
    for name, way in WAYS.items():
        if name not in without and way.suits(card, trial):
            say(Step(name, needed=False))
            trial = _attempted(name, way.take, card, trial)
    return trial


def _attempted(name: str, take: Taken, card: Card, before: Trial) -> Trial:
    """Return the trial after a step, and whether it worked. Raises HeteGenError, RuntimeError if the card is lost."""
    found = take(card, before)
    if not multiplies(card):
        raise RuntimeError("the card multiplies wrongly after it")
    attempts = (*found.abilities.attempts, Attempt(name, found != before))
    return replace(found, abilities=replace(found.abilities, attempts=attempts))


def _multiplying(card: Card, trial: Trial) -> Trial:
    return trial if multiplies(card) else replace(trial, why="It multiplied wrongly when it was tried.")


def _copying(card: Card, trial: Trial) -> Trial:
    up_s, down_s, whole = copies(card)
    if not whole:
        return replace(trial, why="Copies to it and back came back changed when it was tried.")
    return replace(trial, up_bytes_s=COPY / up_s, down_bytes_s=COPY / down_s)


def _counting(card: Card, trial: Trial) -> Trial:
    """Call what the engine counts and limits memory by: an error there must not come up in a conversation."""
    card.limit(card.memory().total)
    card.limit(None)
    card.reset_peak()
    card.release_cached()
    return trial


def _with_kernels(card: Card, trial: Trial) -> Trial:
    own = device_kernels(card.device) is not None
    return replace(trial, abilities=replace(trial.abilities, own_kernels=own))


def _with_products(found: list[TorchProduct], trial: Trial) -> Trial:
    return replace(trial, abilities=replace(trial.abilities, products=(*trial.abilities.products, *found)))


@dataclass(frozen=True)
class Way:
    """A faster way of computing. `suits`: whether it is worth a trial after what was found so far."""

    take: Taken
    suits: Callable[[Card, Trial], bool] = lambda card, trial: True


NEEDED: dict[str, Taken] = {"copies": _copying, "memory": _counting, "products": _multiplying}
"""Without these a card is not used. The product comes last, which shows whether the card was lost before."""
WAYS = {
    "our kernels": Way(_with_kernels, lambda card, trial: card.can.own_kernels),
    "torch's 8-bit products": Way(
        lambda card, trial: _with_products(try_int8(card.device), trial),
        lambda card, trial: not trial.abilities.own_kernels,
    ),
    "torch's 4-bit products": Way(
        lambda card, trial: _with_products(try_int4(card.device), trial),
        lambda card, trial: not trial.abilities.own_kernels,
    ),
    "graphs": Way(lambda card, trial: replace(trial, graphs=replays(card))),
    "weights in place": Way(
        lambda card, trial: replace(trial, in_place=reads_in_place(card)), lambda card, trial: trial.unified
    ),
}
"""Each of these is used where it works."""


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
