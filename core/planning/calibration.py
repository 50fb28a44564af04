"""Calibration at run time: measured times correct the planner's rates, and free memory decides when to plan again.

Pure functions over records. The caller measures, stores the profile by model, and carries out decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from core.spec import Plan, Profile, Times
from core.units import GIB, MIB

# A factor beyond these bounds means that something else is wrong; a difference below the dead band is noise.
LEAST, MOST = 0.25, 4.0
DEAD_BAND = 0.05
LARGEST_STEP = 1.5
# Shares change only for a gain that outweighs moving rows.
WORTHWHILE = 0.04
# From this fraction of a token's time on, the link is considered the bottleneck.
BUSY = 0.9
GROW_STEP = 512 * MIB
GROW_CHECKS = 5


ENGINES = ("cpu", "link", "gpu", "overhead")


def learn(profile: Profile, plan: Plan, measured: Times, tokens: int) -> Profile:
    """Correct the profile by the mean times per token measured under this plan (0 seconds: not measured).

    Each factor moves half of the way (in ratio) to the value that would have predicted the measurement, by a bounded
    step within bounds, and not at all within the dead band; repeated learning of the same converges. If only the total
    and the CPU are known, a link that the plan keeps busy is assumed to work all the time; otherwise the others share
    the rest.
    """
    expected, ratios = plan.decode_times, {}
    for name in ENGINES:
        before, now = getattr(expected, name), getattr(measured, name)
        ratios[name] = now / before if before > 0 and now > 0 else None
    if measured.total > 0 and not any((measured.link, measured.gpu, measured.overhead)):
        ratios |= _of_the_rest(expected, measured)
    factors: dict[str, Any] = {
        name: _moved(getattr(profile, name), getattr(plan.profile, name) * ratio)
        for name, ratio in ratios.items()
        if ratio is not None
    }
    return replace(profile, tokens=profile.tokens + tokens, **factors)


def _of_the_rest(expected: Times, measured: Times) -> dict[str, float]:
    """Return the ratios of measured to expected seconds of the engines that were not measured themselves."""
    if not measured.cpu or not expected.cpu:
        return dict.fromkeys(ENGINES, measured.total / expected.total)
    if expected.link >= BUSY * expected.total:
        return {"link": measured.total / expected.total}
    rest, left = expected.total - expected.cpu, measured.total - measured.cpu
    return dict.fromkeys(("gpu", "overhead"), left / rest) if rest > 0 and left > 0 else {}


def worth_changing(before: Plan, after: Plan) -> bool:
    """Return whether the new plan is faster by more than the cost of moving rows and noise.

    Both are judged by current knowledge (`after.profile`). Comparing with a measured time instead would make every slow
    moment a reason to move.
    """
    return expected_s(before, after.profile) > after.decode_times.total * (1 + WORTHWHILE)


def expected_s(plan: Plan, profile: Profile) -> float:
    """Return the seconds per token under `profile` of a plan that was made with other corrections."""
    times, old = plan.decode_times, plan.profile
    cpu, overhead = times.cpu * (profile.cpu / old.cpu - 1), times.overhead * (profile.overhead / old.overhead - 1)
    # The GPU's time is hidden behind the CPU's, unless the GPU does everything.
    gpu = 0.0 if times.cpu else times.gpu * (profile.gpu / old.gpu - 1)
    link = times.link * profile.link / old.link
    longer = max(link, times.critical + cpu + overhead + gpu) - max(times.link, times.critical)
    return times.total + longer


@dataclass(frozen=True)
class Keep:
    """Decision: keep the plan."""


@dataclass(frozen=True)
class Shrink:
    """Decision: others need memory, so plan again with at most `vram` bytes on the device."""

    vram: int
    reason: str


@dataclass(frozen=True)
class Grow:
    """Decision: memory has been free for a while, so plan again with at most `vram` bytes."""

    vram: int
    reason: str


@dataclass(frozen=True)
class Watch:
    """The number of consecutive checks of free memory with room to grow."""

    roomy: int = 0


def watch_memory(plan: Plan, free: int, watch: Watch, cap: int | None = None) -> tuple[Keep | Shrink | Grow, Watch]:
    """Check the device's `free` bytes, after ours are taken; `cap` is the most that we may use.

    Shrinks at once if less than half of the margin is left or the cap has fallen. Grows only after several consecutive
    checks with room for a whole step, so that a program that comes and goes does not make weights move back and forth.
    """
    memory = plan.memory[-1]
    usable = max(0, memory.used + free - memory.margin)
    usable = usable if cap is None else min(usable, cap)
    pressed = free < memory.margin // 2 or free < 0 or (cap is not None and cap < memory.used)
    if pressed and usable < memory.used:
        return Shrink(usable, "Another program needs the graphics memory."), Watch()
    if usable - memory.used < _grow_step(memory.used) or fully_resident(plan):
        return Keep(), Watch()
    if watch.roomy + 1 < GROW_CHECKS:
        return Keep(), Watch(watch.roomy + 1)
    return Grow(usable, "Graphics memory has become free."), Watch()


def fully_resident(plan: Plan) -> bool:
    """Return whether every weight lies in VRAM, so that more of it would change nothing."""
    return all(linear.resident == linear.rows for linear in plan.linears)


def _grow_step(used: int) -> int:
    return min(GROW_STEP, max(used // 8, 16 * MIB)) if used < 8 * GIB else GROW_STEP


def _moved(factor: float, target: float) -> float:
    """Return the factor moved half of the way to the target."""
    ratio = target / factor
    if abs(ratio - 1) < DEAD_BAND:
        return factor
    step = math.sqrt(min(max(ratio, 1 / LARGEST_STEP), LARGEST_STEP))
    return min(max(factor * step, LEAST), MOST)
