"""Decides whether a draft model pays, and where it lies: pure functions of both models' plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.planning.calibration import fully_resident
from core.planning.memory_budget import gpu_workspace, vram_limit
from core.planning.planner import place
from core.planning.speculation import LIKELY_ACCEPTANCE, MOST_ROWS, Prices, best_size, expected_gain
from core.spec import Budget, Format, Hardware, ModelSpec, Plan

DRAFT_FORMAT: Format = "int4"


@dataclass(frozen=True)
class Drafting:
    """The plans of a target model and its draft model.

    `nbytes`: memory that `draft` takes on its device. `gain`: predicted speedup over the target alone, at an acceptance
    of LIKELY_ACCEPTANCE.
    """

    target: Plan
    draft: Plan
    nbytes: int
    gain: float


def plan_drafting(
    spec: ModelSpec, draft: ModelSpec, alone: Plan, hardware: Hardware, budget: Budget, *, shares_cache: bool
) -> Drafting | None:
    """Return the best place for `draft` beside `spec`, whose plan without it is `alone`; None if there is no room.

    If a GPU computes, the draft lies there entirely, or on the CPU if it uses the target's KV cache and gains more.
    """
    wishes = replace(budget, format=alone.format, context=alone.context, threads=alone.threads)
    places = _places(draft, alone, hardware, wishes, shares_cache=shares_cache)
    found = [beside for place in places if (beside := _beside(spec, alone, hardware, wishes, *place))]
    return max(found, key=lambda one: one.gain, default=None)


def _places(
    draft: ModelSpec, alone: Plan, hardware: Hardware, wishes: Budget, *, shares_cache: bool
) -> Iterator[tuple[Plan, int]]:
    """Yield the plans of a draft model where it has room, with the bytes that it takes there."""
    small = without_kv(draft) if shares_cache else draft
    if alone.gpu >= 0 and (there := entirely_on_gpu(small, hardware, wishes, few=shares_cache)):
        yield there
    if alone.gpu >= 0 and not (shares_cache and can_be_mirrored(draft, wishes)):
        return
    mirrors = any(device >= 0 for device in alone.kv_devices)
    if here := _on_cpu(draft if mirrors else small, hardware, wishes):
        yield here


def _beside(
    spec: ModelSpec, alone: Plan, hardware: Hardware, wishes: Budget, planned: Plan, nbytes: int
) -> Drafting | None:
    """Return the plans of both models if `planned`, a draft model's, takes so many bytes of its device."""
    less, left = _without(hardware, wishes, planned.gpu, nbytes)
    target = place(spec, less, left, alone.strategy, alone.profile)
    if target.fits == "no" or target.gpu != alone.gpu:
        return None
    slower = target.decode_times.total / alone.decode_times.total
    return Drafting(target, planned, nbytes, _gain(target, planned) / slower)


def can_be_mirrored(draft: ModelSpec, wishes: Budget) -> bool:
    """Return whether the KV cache can be copied to RAM token by token: see `core.layers.kv_mirror`."""
    return wishes.kv == "bf16" and not any(layer.window or layer.state_bytes for layer in draft.kv_layers)


def without_kv(spec: ModelSpec) -> ModelSpec:
    """Return the same model with another's KV cache."""
    return replace(
        spec,
        kv_layers=tuple(
            replace(layer, bytes_per_token=0, state_bytes=0, packed_per_token=0) for layer in spec.kv_layers
        ),
    )


def prices(target: Plan, draft: Plan | None) -> Prices:
    """Return the prices of drafting according to these plans; `draft` None if drafting costs nothing."""
    one = target.decode_times.total
    return Prices(draft.decode_times.total / one if draft else 0.0, tuple(seconds / one for seconds in target.check_s))


def _gain(target: Plan, draft: Plan) -> float:
    cost = prices(target, draft).of_pass
    return expected_gain(LIKELY_ACCEPTANCE, best_size(LIKELY_ACCEPTANCE, cost), cost)


def entirely_on_gpu(draft: ModelSpec, hardware: Hardware, wishes: Budget, *, few: bool) -> tuple[Plan, int] | None:
    """Place the draft on the GPU. `few`: it never prefills, so that it needs little workspace."""
    plan = place(draft, hardware, replace(wishes, format=DRAFT_FORMAT, whole_head=True))
    if plan.gpu < 0 or not fully_resident(plan):
        return None
    gpu = next(one for one in hardware.gpus if one.index == plan.gpu)
    memory = plan.memory[-1]
    workspace = gpu_workspace(draft, DRAFT_FORMAT, gpu, MOST_ROWS, plan.context) if few else memory.workspace
    nbytes = memory.used - memory.workspace + workspace
    return (plan, nbytes) if nbytes < vram_limit(gpu, wishes) else None


def _on_cpu(draft: ModelSpec, hardware: Hardware, wishes: Budget) -> tuple[Plan, int] | None:
    plan = place(draft, replace(hardware, gpus=()), replace(wishes, format=DRAFT_FORMAT, vram=None, whole_head=True))
    memory = plan.memory[0]
    # Conversations are parked with the target alone.
    return None if plan.fits == "no" or plan.from_disk else (plan, memory.used - memory.parked)


def _without(hardware: Hardware, budget: Budget, index: int, nbytes: int) -> tuple[Hardware, Budget]:
    """Return the machine and limits that remain after a draft took `nbytes` of a GPU, or of RAM (`index` -1)."""
    if index < 0:
        cpu = replace(hardware.cpu, ram_free=hardware.cpu.ram_free - nbytes)
        ram = None if budget.ram is None else max(0, budget.ram - nbytes)
        return replace(hardware, cpu=cpu), replace(budget, ram=ram)
    gpus = tuple(replace(gpu, vram_free=gpu.vram_free - nbytes) if gpu.index == index else gpu for gpu in hardware.gpus)
    vram = None if budget.vram is None else max(0, budget.vram - nbytes)
    return replace(hardware, gpus=gpus), replace(budget, vram=vram)
