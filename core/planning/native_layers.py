"""How the CPU computes a model's layers while few rows are processed, and what a layer costs besides its products.

`core.layers` finds by trial which layers our library takes. The planner tells them by their linears, before anything is
loaded: consecutive layers of the usual makes are one call (a run); those with recurrent states, latents, or experts of
another make are some calls each; in all others, Python and torch work around each linear.
"""

from __future__ import annotations

from core.spec import BUCKET_LIMITS, FEW, Cpu, LinearSpec, ModelSpec

DENSE_GROUPS, EXPERT_GROUPS = (3, 1, 2, 1), (3, 1, 1, 1)
"""Linears of a layer by shared input (q, k, v; output; gate, up, or those of experts; down) that
`layers.fused_layers` computes."""
JOINED_GROUPS = ((1, 1, 1, 1), (3, 1, 1, 1))
"""The same where gate and up are one linear, and perhaps q, k and v another."""
PARALLEL_GROUPS = (5, 1, 1)
"""Gate and up read what q, k and v read (Cohere)."""
SIDED_GROUPS, LENT_GROUPS = (*DENSE_GROUPS, 1, 1), (1, 1, 2, 1, 1, 1)
"""Two linears are around an input of the layer's own, and those without k and v read another layer's (Gemma 4)."""
OWN_CALLS = 2
"""Native calls of a layer in no run: before and after its attention, or its recurrence and the rest."""


def in_runs(spec: ModelSpec) -> frozenset[int]:
    """Return the layers that one native call computes together with their neighbours."""
    makes = {True: (EXPERT_GROUPS,), False: (DENSE_GROUPS, PARALLEL_GROUPS, SIDED_GROUPS, LENT_GROUPS)}
    chosen = _with_experts(spec)
    usual = {layer for layer, groups in spec.layer_groups.items() if groups in makes[layer in chosen]}
    return frozenset(usual | _with_joined_linears(spec))


def in_own_calls(spec: ModelSpec) -> frozenset[int]:
    """Return the layers that take native calls of their own."""
    latent = {linear.layer for linear in spec.linears if linear.key_heads}
    recurrent = {layer.layer for layer in spec.kv_layers if layer.state_bytes}
    return frozenset(latent | recurrent | _with_experts(spec)) - in_runs(spec)


def all_in_runs(spec: ModelSpec) -> bool:
    """Return whether the CPU can compute all layers in runs, also entirely beside a device: there, each has its own
    keys and values."""
    return 0 < spec.layers == len(in_runs(spec)) and LENT_GROUPS not in spec.layer_groups.values()


def called_apart(spec: ModelSpec) -> frozenset[int]:
    """Return the layers of which each linear is a call of its own also for few rows on the CPU alone, and -1 for what
    lies outside of layers."""
    return frozenset(linear.layer for linear in spec.linears) - in_runs(spec) - in_own_calls(spec)


def around_products_s(spec: ModelSpec, cpu: Cpu, tokens: int) -> float:
    """Return the seconds of all layers besides products and attention, on the CPU alone.

    For many rows, torch works once on all that linears take and give (norms, activations, sums, rotation).
    """
    if tokens > BUCKET_LIMITS[FEW]:
        states = sum(one.active * (one.rows + one.columns) for one in spec.linears if one.layer >= 0)
        return spec.layers * cpu.layer_s + tokens * states * cpu.state_s
    runs, own = len(in_runs(spec)), len(in_own_calls(spec))
    others = spec.layers - runs - own
    return (runs + own) * cpu.run_s + own * OWN_CALLS * cpu.call_s + others * cpu.layer_s


def _with_joined_linears(spec: ModelSpec) -> set[int]:
    """Return the dense layers whose last linear but one has twice as many rows as the last has columns: gate and up."""
    of: dict[int, list[LinearSpec]] = {}
    for linear in spec.linears:
        of.setdefault(linear.layer, []).append(linear)
    layers = {layer for layer, groups in spec.layer_groups.items() if groups in JOINED_GROUPS} - _with_experts(spec)
    return {layer for layer in layers if of[layer][-2].rows == 2 * of[layer][-1].columns}


def _with_experts(spec: ModelSpec) -> set[int]:
    return {linear.layer for linear in spec.linears if linear.experts is not None}
