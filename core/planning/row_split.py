"""The split of linears: residents by gain per byte, then streamed rows by balancing link and CPU.

Works on classes of groups with fractions (see `pass_cost`); `plan_builder` turns fractions into rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

from core.planning.cost_model import GroupClass, Residents
from core.planning.machine_rates import MachineRates
from core.planning.pass_cost import PassCost
from core.spec import DECODE, Strategy, Times

Shares = tuple[float, ...]
"""The streamed fraction of non-resident rows, by class."""
STREAMING: tuple[Strategy, ...] = ("stream", "serial")
"""Strategies that stream all non-resident rows, whatever the CPU could compute."""
# Fractions of the room for weights to use for whole groups, which need no exchange. The rest is spread over the others,
# so that CPU and GPU work concurrently. Which is better depends on the exchange's cost, so each is tried.
WHOLE_PARTS = (1.0, 0.9, 0.7, 0.4, 0.0)
BALANCE_STEPS = 4
SEARCH_STEPS, GOLDEN = 7, (5**0.5 - 1) / 2
BUSY_DEVICE = 0.5
"""From this fraction of the CPU's time on, the device may become the bottleneck."""
MOST_FORCED = 3


def resident_choices(
    classes: Sequence[GroupClass], room: int, machine: MachineRates, strategy: Strategy
) -> list[Residents]:
    """Return ways to fill `room` bytes of VRAM, each within it."""
    if room >= sum(item.count * item.nbytes for item in classes):
        everything = Residents(tuple(item.count for item in classes), (0.0,) * len(classes))
        # A card with memory of its own is so much faster that sharing does not pay for its exchanges.
        return [everything, _working_together(classes, room)] if machine.unified else [everything]
    # Groups that the card computes no faster than the CPU, including launches and exchanges, stay on the host.
    gains = [_gain(item, machine, strategy) for item in classes]
    order = sorted((index for index, gain in enumerate(gains) if gain > 0), key=lambda index: -gains[index])
    # Also try all experts on the host: a layer with some of them on the card exchanges with the CPU for the others.
    dense = [index for index in order if not classes[index].chosen]
    found = {
        Residents(_whole_groups(classes, kept, room, 1.0)[0], (0.0,) * len(classes)): None for kept in (order, dense)
    }
    for part in WHOLE_PARTS:
        whole, left = _whole_groups(classes, order, room, part)
        found[Residents(whole, _spread_evenly(classes, order, whole, left))] = None
        found[Residents(whole, _spread_by_gain(classes, order, whole, left))] = None
        if machine.replay_saves and strategy not in STREAMING:
            whole, left = _whole_layers(classes, room, part)
            found[Residents(whole, _spread_evenly(classes, order, whole, left))] = None
    if not machine.shares_cores:
        found[_working_together(classes, room)] = None
    return list(found)


def _working_together(classes: Sequence[GroupClass], room: int) -> Residents:
    """Keep as much of every group resident as fits, but no more than lets both engines finish at the same time.

    Then even a card that is no faster than the CPU pays.
    """
    nothing = (0,) * len(classes)
    parts = _spread_evenly(classes, range(len(classes)), nothing, room)
    balanced = [item.cpu[DECODE] / (item.cpu[DECODE] + item.gpu[DECODE]) for item in classes]
    return Residents(nothing, tuple(min(part, share) for part, share in zip(parts, balanced, strict=True)))


def nothing_resident(classes: Sequence[GroupClass]) -> Residents:
    """Return residents without rows on the device, for all classes."""
    return Residents((0,) * len(classes), (0.0,) * len(classes))


def best_streams(case: PassCost) -> tuple[Shares, Times]:
    """Return the best streamed shares in this phase, by class, and their times."""

    timed = cache(case.times)
    return min(((shares, timed(shares)) for shares in _stream_choices(case, timed)), key=lambda choice: choice[1].total)


def _gain(item: GroupClass, machine: MachineRates, strategy: Strategy) -> float:
    """Return the seconds per token saved per byte of VRAM: g = T_cpu / M_gpu, with exchanges and the GPU's own time."""
    if strategy in STREAMING and item.streamable[DECODE]:
        return machine.link_s(strategy)
    on_cpu = item.cpu[DECODE] + item.cpu_call[DECODE] + item.exchange[DECODE] + item.exchange_out[DECODE]
    return (on_cpu - item.gpu[DECODE] - item.gpu_call[DECODE]) / item.nbytes


def _whole_groups(
    classes: Sequence[GroupClass], order: Sequence[int], room: int, part: float
) -> tuple[tuple[int, ...], int]:
    """Return the number of whole groups by class that fit into `part` of the room, by gain, and the bytes left."""
    whole, left = [0] * len(classes), int(room * part)
    for index in order:
        whole[index] = min(classes[index].count, left // classes[index].nbytes)
        left -= whole[index] * classes[index].nbytes
    used = sum(count * item.nbytes for count, item in zip(whole, classes, strict=True))
    return tuple(whole), room - used


def _whole_layers(classes: Sequence[GroupClass], room: int, part: float) -> tuple[tuple[int, ...], int]:
    """Return the number of groups by class of the first layers that fit entirely into `part` of the room, and the bytes
    left. These layers can be replayed as graphs."""
    sizes = Counter[int]()
    for item in classes:
        for layer in item.layers:
            sizes[layer] += item.nbytes
    ends = list(accumulate(sizes[layer] for layer in sorted(sizes) if layer >= 0))
    fitting = bisect_right(ends, int(room * part))
    whole = tuple(sum(0 <= layer < fitting for layer in item.layers) for item in classes)
    return whole, room - (ends[fitting - 1] if fitting else 0)


def _spread_evenly(
    classes: Sequence[GroupClass], order: Sequence[int], whole: Sequence[int], left: int
) -> tuple[float, ...]:
    rest = sum((classes[index].count - whole[index]) * classes[index].nbytes for index in order)
    part = min(1.0, left / rest) if rest else 0.0
    return tuple(part if index in order else 0.0 for index in range(len(classes)))


def _spread_by_gain(
    classes: Sequence[GroupClass], order: Sequence[int], whole: Sequence[int], left: float
) -> tuple[float, ...]:
    parts = [0.0] * len(classes)
    for index in order:
        rest = (classes[index].count - whole[index]) * classes[index].nbytes
        parts[index] = min(1.0, left / rest) if rest else 0.0
        left -= parts[index] * rest
    return tuple(parts)


def _stream_choices(case: PassCost, timed: Callable[[Shares], Times]) -> list[Shares]:
    count = len(case.classes)
    if case.machine.gpu is None or case.strategy == "cpu":
        return [(0.0,) * count]
    if case.strategy in STREAMING:
        return [tuple(1.0 if item.streamable[case.bucket] else 0.0 for item in case.classes)]
    allowed = [index for index, item in enumerate(case.classes) if item.streamable[case.bucket]]
    # Small groups pay most for their exchange, so it may be best to stream them entirely.
    allowed.sort(key=lambda index: case.classes[index].nbytes)
    choices = [(0.0,) * count, *_in_step(count, timed, allowed)]
    for forced in range(min(len(allowed), MOST_FORCED) + 1):
        choices += _balanced(count, timed, allowed[:forced], allowed[forced:])
    return choices


def _balanced(count: int, timed: Callable[[Shares], Times], whole: Sequence[int], free: Sequence[int]) -> list[Shares]:
    """Return choices that stream the `whole` classes entirely and an equal share of the `free` ones.

    The share is 1, or such that the link takes as long as everything else. Both are nearly linear in the share, so a
    few steps of false position find it.
    """

    def shares(share: float) -> Shares:
        return _streamed(count, whole, free, share)

    def excess(share: float) -> float:
        times = timed(shares(share))
        return times.link - times.critical

    low, high = 0.0, 1.0
    at_low, at_high = excess(1e-6), excess(1.0)
    if not free or at_low >= 0 or at_high <= 0:
        return [shares(1.0)]
    for _ in range(BALANCE_STEPS):
        middle = low + (high - low) * at_low / (at_low - at_high)
        if (found := excess(middle)) < 0:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
    return [shares(1.0), shares(low), shares(high)]


def _in_step(count: int, timed: Callable[[Shares], Times], allowed: Sequence[int]) -> list[Shares]:
    """Return the best equal share of all classes, if the device may have as much work as the link or the CPU."""

    def shares(share: float) -> Shares:
        return _streamed(count, (), allowed, share)

    nothing, everything = timed(shares(0.0)), timed(shares(1.0))
    if everything.gpu <= everything.link and nothing.gpu <= BUSY_DEVICE * nothing.cpu:
        return []
    return [shares(_lowest(lambda share: timed(shares(share)).total))]


def _streamed(count: int, whole: Sequence[int], free: Sequence[int], share: float) -> Shares:
    """Return shares of 1 for the `whole` classes and `share` for the `free` ones."""
    return tuple(1.0 if index in whole else share if index in free else 0.0 for index in range(count))


def _lowest(total: Callable[[float], float]) -> float:
    """Return the minimum between 0 and 1 of a unimodal function, by golden-section search."""
    low, high = 0.0, 1.0
    left, right = high - GOLDEN, low + GOLDEN
    at_left, at_right = total(left), total(right)
    for _ in range(SEARCH_STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = total(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = total(right)
    return (low + high) / 2
