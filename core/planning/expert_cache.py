"""Decides which experts of a layer lie entirely on the device, from the plan's memory and their use. Pure.

A plan gives VRAM to rows of all experts of a layer alike. Whole experts in the same memory are worth more: the most
used ones can be chosen, while a split expert costs an exchange between device and CPU for each product.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from core.spec import Rows

SURELY = 4.0
"""An expert replaces another if their difference in uses exceeds this many standard deviations: among a hundred equally
used experts, some are always ahead by chance."""

EIGHTHS, ENOUGH_USES = 8, 16
"""Number of parts of a layer's experts by which popularity is recorded, and the mean uses per expert required."""


@dataclass(frozen=True)
class Exchange:
    """Replacement of one expert on the device by another."""

    comes: int
    goes: int


def whole_experts(resident_bytes: int, expert_bytes: int, experts: int) -> int:
    """Return how many experts of a layer fit into the memory that a plan gives to rows of all of them."""
    return min(experts, resident_bytes // expert_bytes) if expert_bytes else 0


def without_residents(rows: Rows) -> Rows:
    """Return the split of an expert on the host: without CPU rows if others have none."""
    if rows.streamed and not rows.cpu:
        return Rows(0, rows.total, 0)
    return Rows(0, rows.streamed, rows.total - rows.streamed)


def on_the_host(rows: int) -> Rows:
    """Return the split of an expert that each pass decides about as a whole: all rows on the host."""
    return Rows(0, 0, rows)


def set_aside(counts: Sequence[int], wanted: int) -> tuple[int, ...]:
    """Reduce the counts by `wanted` experts in total, if there are as many, each time in a layer that holds most."""
    left = list(counts)
    for _ in range(min(wanted, sum(left))):
        left[left.index(max(left))] -= 1
    return tuple(left)


def popularity(layers: Collection[Sequence[float]]) -> tuple[float, ...]:
    """Return `Profile.hottest` for all layers together; empty if too few uses were counted."""
    counted = [sorted(uses, reverse=True) for uses in layers if sum(uses) >= ENOUGH_USES * len(uses)]
    if not counted:
        return ()
    return tuple(
        sum(sum(uses[: len(uses) * part // EIGHTHS]) / sum(uses) for uses in counted) / len(counted)
        for part in range(1, EIGHTHS + 1)
    )


def hottest(uses: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the most used experts, lower numbers first among equals."""
    return tuple(sorted(range(len(uses)), key=lambda expert: (-uses[expert], expert))[:count])


def exchange(uses: Sequence[float], held: Collection[int]) -> Exchange | None:
    """Return the replacement to make if the device holds `held`; None if none is clearly better."""
    outside = [expert for expert in range(len(uses)) if expert not in held]
    if not held or not outside:
        return None
    comes = max(outside, key=lambda expert: uses[expert])
    goes = min(held, key=lambda expert: uses[expert])
    more, all_uses = uses[comes] - uses[goes], uses[comes] + uses[goes]
    return Exchange(comes, goes) if more > 0 and more * more >= SURELY**2 * all_uses else None
