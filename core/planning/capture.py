"""Decides whether a decode pass can be captured as a graph on a card: no part of it may need the CPU."""

from __future__ import annotations

from dataclasses import replace

from core.planning.calibration import fully_resident
from core.spec import Hardware, ModelSpec, Plan


def with_capture(plan: Plan, spec: ModelSpec, hardware: Hardware) -> Plan:
    """Return the plan with `captured` set. Only for the default strategy: the others are for comparison."""
    able = any(gpu.graphs for gpu in hardware.gpus if gpu.index == plan.gpu)
    return replace(plan, captured=able and plan.strategy == "hetegen" and can_be_captured(plan, spec))


def can_be_captured(plan: Plan, spec: ModelSpec) -> bool:
    """Return whether all weights and states are on the card and every token takes the same operations.

    Excludes windows (states move), recurrent layers, experts (chosen by token) and packed states.
    """
    there = fully_resident(plan) and not plan.host_layers and min(plan.kv_devices, default=-1) >= 0
    grows = all(not layer.window and not layer.state_bytes for layer in spec.kv_layers)
    alike = all(linear.experts == 1 for linear in spec.linears)
    return there and grows and alike and plan.kv == "bf16"
