"""Decides which layers can be captured as graphs on a card: no part of their work may need the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from core.planning.calibration import fully_resident
from core.planning.cost_model import GroupClass, Residents
from core.planning.machine_rates import MachineRates
from core.spec import Hardware, ModelSpec, Plan

MOST_RUNS = 4
"""Graphs of one pass."""
MOST_ROWS, ROWS_TOGETHER = 16, 80
"""Largest number of rows of a captured pass, and of all that are kept together, which bounds their memory: the whole
model for one to eight rows takes 36, and for 1, 2, 3, 5, 9 and 16 rows as many."""


def with_capture(plan: Plan, spec: ModelSpec, hardware: Hardware) -> Plan:
    """Return the plan with `captured` set. Only for the default strategy: the others are for comparison."""
    able = any(gpu.graphs for gpu in hardware.gpus if gpu.index == plan.gpu) and plan.strategy == "hetegen"
    return replace(plan, captured=capturable(plan, spec) if able else ())


def capturable(plan: Plan, spec: ModelSpec) -> tuple[int, ...]:
    """Return the layers that are on the card with their KV cache and in which every token takes the same operations."""
    there = {kv.layer for kv, gpu in zip(spec.kv_layers, plan.kv_devices, strict=True) if gpu >= 0}
    weights = zip(spec.linears, plan.linears, strict=True)
    divided = {linear.layer for linear, one in weights if one.resident < one.rows}
    return tuple(sorted(steady_layers(spec) & there - divided - set(plan.host_layers)))


def steady_layers(spec: ModelSpec) -> frozenset[int]:
    """Return the layers in which every token takes the same operations: not recurrent, without experts that tokens
    choose."""
    growing = {kv.layer for kv in spec.kv_layers if not kv.state_bytes}
    return frozenset(growing - {linear.layer for linear in spec.linears if linear.experts > 1})


def layers_on_card(
    spec: ModelSpec, machine: MachineRates, classes: Sequence[GroupClass], residents: Residents, kv: Sequence[int]
) -> frozenset[int]:
    """Return the layers that this layout, with KV caches on `kv` devices, lets a card replay at a known gain."""
    if machine.gpu is None or not (machine.gpu.graphs and machine.gpu.replay_saves):
        return frozenset()
    there = {layer.layer for layer, gpu in zip(spec.kv_layers, kv, strict=True) if gpu >= 0}
    parts = zip(classes, residents.whole, strict=True)
    divided = {layer for item, whole in parts for layer in item.layers[whole:]}
    return steady_layers(spec) & there - divided - set(residents.host_layers)


def is_whole(plan: Plan) -> bool:
    """Return whether all layers can be captured, and all weights besides them are on the card, too."""
    return fully_resident(plan) and len(plan.captured) == len(plan.kv_devices)


def runs_of(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the runs of consecutive numbers among these rising ones, the longest first, at most MOST_RUNS."""
    groups = groupby(enumerate(layers), lambda one: one[1] - one[0])
    return sorted((tuple(number for _, number in group) for _, group in groups), key=len, reverse=True)[:MOST_RUNS]
