"""Decides what can be captured as graphs on a card: entire layers, and layers except for their MLPs.

No part of captured work may need the CPU. The module of a layer that the CPU shares, or whose experts depend on the
token, is a gap between two graphs; the rest of the layer can still be captured if its attention lies on the card.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby

from core.planning.calibration import fully_resident
from core.planning.cost_model import GroupClass, Residents
from core.planning.machine_rates import MachineRates
from core.spec import Hardware, ModelSpec, Plan

MOST_RUNS = 4
"""Runs of layers in one pass that are captured."""
MOST_ROWS, ROWS_TOGETHER = 16, 80
"""Largest number of rows of a captured pass, and of all for which memory is set aside: the whole model for one to eight
rows takes 36, and for 1, 2, 3, 5, 9 and 16 rows as many."""

Capturable = tuple[tuple[int, ...], tuple[str, ...]]
"""Layers of which all or most can be captured, and the modules in them that cannot, by path."""


def with_capture(plan: Plan, spec: ModelSpec, hardware: Hardware, graph_bytes: int) -> Plan:
    """Return the plan with `captured` set. Only for the default strategy: the others are for comparison."""
    able = any(gpu.graphs for gpu in hardware.gpus if gpu.index == plan.gpu) and plan.strategy == "hetegen"
    layers, gaps = capturable(plan, spec) if able else ((), ())
    return replace(plan, captured=layers, gaps=gaps, graph_bytes=graph_bytes if layers else 0)


def capturable(plan: Plan, spec: ModelSpec) -> Capturable:
    """Return what lies on the card together with the KV cache, and is the same work for every token."""
    there = {kv.layer for kv, gpu in zip(spec.kv_layers, plan.kv_devices, strict=True) if gpu >= 0}
    weights = zip(spec.linears, plan.linears, strict=True)
    divided = {linear.part for linear, one in weights if one.resident < one.rows}
    return _around(spec, there - set(plan.host_layers), divided)


def steady_layers(spec: ModelSpec) -> frozenset[int]:
    """Return the layers that are not recurrent, and whose attention takes little memory besides the KV cache."""
    return frozenset(kv.layer for kv in spec.kv_layers if not (kv.state_bytes or spec.widens_states))


def _around(spec: ModelSpec, there: Collection[int], divided: Collection[str]) -> Capturable:
    """Return what can be captured of layers whose KV cache is `there`, if these modules are `divided`."""
    gaps: dict[int, set[str]] = {layer: set() for layer in steady_layers(spec) & set(there)}
    attention: dict[int, str] = {}
    for linear in spec.linears:
        if linear.layer not in gaps:
            continue
        first, gap = (
            attention.setdefault(linear.layer, linear.part),
            linear.part in divided or linear.experts is not None,
        )
        # Attention, which comes first, needs more than the layer's states; and so does a linear that is no module's.
        if gap and linear.part in (first, linear.name):
            del gaps[linear.layer]
        elif gap:
            gaps[linear.layer].add(linear.part)
    return tuple(sorted(gaps)), tuple(sorted(name for names in gaps.values() for name in names))


def with_replays(
    residents: Residents, spec: ModelSpec, machine: MachineRates, classes: Sequence[GroupClass], kv: Sequence[int]
) -> Residents:
    """Return the residents, with KV caches on `kv` devices, and what of them a card can replay at a known gain."""
    if machine.gpu is None or not (machine.gpu.graphs and machine.gpu.replay_saves):
        return residents
    residents = residents.with_whole(classes)
    there = {layer.layer for layer, gpu in zip(spec.kv_layers, kv, strict=True) if gpu >= 0}
    parts = [[spec.linears[members[0]].part for members in item.members] for item in classes]
    divided = {part for names, whole in zip(parts, residents.whole, strict=True) for part in names[whole:]}
    layers, gaps = _around(spec, there - set(residents.host_layers), divided)
    left_out, captured = set(gaps), set(layers)
    groups = tuple(
        sum(layer in captured and part not in left_out for layer, part in zip(item.layers, names, strict=True))
        for item, names in zip(classes, parts, strict=True)
    )
    return replace(residents, replayed=frozenset(captured), replayed_groups=groups, gaps=len(gaps))


def is_whole(plan: Plan) -> bool:
    """Return whether all layers can be captured entirely, and all weights besides them are on the card, too."""
    return fully_resident(plan) and len(plan.captured) == len(plan.kv_devices) and not plan.gaps


def runs_of(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the runs of consecutive numbers among these rising ones, the longest first, at most MOST_RUNS."""
    groups = groupby(enumerate(layers), lambda one: one[1] - one[0])
    return sorted((tuple(number for _, number in group) for _, group in groups), key=len, reverse=True)[:MOST_RUNS]
