"""Placement of the vision tower: in RAM, or on the card if everything else lies there and leaves room."""

from __future__ import annotations

from dataclasses import replace

from core.planning.calibration import fully_resident
from core.planning.memory_budget import vram_limit
from core.spec import Budget, Hardware, ModelSpec, Plan
from core.units import MIB

LOOKING = 512 * MIB
"""Bytes of a vision tower's activations for one picture."""


def with_sight(plan: Plan, spec: ModelSpec, hardware: Hardware, budget: Budget) -> Plan:
    """Return the plan with the vision tower on its card if there is room, so that text is never slower for it."""
    gpu = next((one for one in hardware.gpus if one.index == plan.gpu), None)
    if gpu is None or not spec.sight_bytes or not budget.sight_on_card:
        return plan
    cpu, card = plan.memory
    free = vram_limit(gpu, budget) - card.used
    if not fully_resident(plan) or min(plan.kv_devices, default=0) < 0 or free < spec.sight_bytes + LOOKING:
        return plan
    memory = replace(cpu, sight=0), replace(card, sight=spec.sight_bytes)
    return replace(plan, sight_gpu=plan.gpu, memory=memory)


def without_sight(plan: Plan) -> Plan:
    """Return the plan with the vision tower in RAM."""
    if plan.sight_gpu < 0:
        return plan
    cpu, card = plan.memory
    return replace(plan, sight_gpu=-1, memory=(replace(cpu, sight=card.sight), replace(card, sight=0)))
