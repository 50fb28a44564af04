"""Which experts of a layer lie whole on the device: pure decisions from what a plan gives and how often each was used.

A plan gives VRAM to rows of all experts of a layer alike. Whole experts for the same bytes are worth more: those that
are used most can be chosen, and one that is divided costs an exchange between device and processor for each product.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from core.spec import Rows

SURELY = 4.0
"""An expert replaces another if it was used more by so many times what chance makes of that many uses: of a hundred
experts that are used alike, some are always ahead."""

EIGHTHS, ENOUGH_USES = 8, 16
"""Parts of a layer's experts that popularity is known of, and uses of each on average from which on it is."""


@dataclass(frozen=True)
class Exchange:
    """One expert comes to the device in place of another."""

    comes: int
    goes: int


def whole_experts(resident_bytes: int, expert_bytes: int, experts: int) -> int:
    """How many experts of a layer fit into what a plan gives to the rows of all of them."""
    return min(experts, resident_bytes // expert_bytes) if expert_bytes else 0


def without_residents(rows: Rows) -> Rows:
    """How an expert is divided that lies on the host: where others have no rows on the CPU, it has none either."""
    if rows.streamed and not rows.cpu:
        return Rows(0, rows.total, 0)
    return Rows(0, rows.streamed, rows.total - rows.streamed)


def on_the_host(rows: int) -> Rows:
    """How an expert is divided that each pass decides about as a whole."""
    return Rows(0, 0, rows)


def set_aside(counts: Sequence[int], wanted: int) -> tuple[int, ...]:
    """Take so many experts less in all, where there are as many, each from a layer that holds most."""
    left = list(counts)
    for _ in range(min(wanted, sum(left))):
        left[left.index(max(left))] -= 1
    return tuple(left)


def popularity(layers: Collection[Sequence[float]]) -> tuple[float, ...]:
    """What `Profile.hottest` says, of all layers together; empty where too little was counted to say anything."""
    counted = [sorted(uses, reverse=True) for uses in layers if sum(uses) >= ENOUGH_USES * len(uses)]
    if not counted:
        return ()
    return tuple(
        sum(sum(uses[: len(uses) * part // EIGHTHS]) / sum(uses) for uses in counted) / len(counted)
        for part in range(1, EIGHTHS + 1)
    )


def hottest(uses: Sequence[float], count: int) -> tuple[int, ...]:
    """The experts used most, the first of equals."""
    return tuple(sorted(range(len(uses)), key=lambda expert: (-uses[expert], expert))[:count])


def exchange(uses: Sequence[float], held: Collection[int]) -> Exchange | None:
    """What replaces what where the device holds `held`; None where nothing clearly should."""
    outside = [expert for expert in range(len(uses)) if expert not in held]
    if not held or not outside:
        return None
    comes = max(outside, key=lambda expert: uses[expert])
    goes = min(held, key=lambda expert: uses[expert])
    more, all_uses = uses[comes] - uses[goes], uses[comes] + uses[goes]
    return Exchange(comes, goes) if more > 0 and more * more >= SURELY**2 * all_uses else None
