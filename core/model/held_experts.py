"""Experts held whole on the device, chosen across all layers if a plan has room for some of them only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from core.accelerators.base import Accelerator
from core.errors import DeviceLost, NotEnoughMemory
from core.layers import moe
from core.layers.expert_cache import ExpertCache, ExpertUse
from core.layers.expert_exchange import AT_ONCE, ExpertExchanges
from core.layers.expert_trial import CacheTrial
from core.layers.fused_experts import FusedExperts
from core.offload.hetero_linear import SharedInputs
from core.offload.host_weight import HostWeight
from core.offload.parameter_manager import ParameterManager, SerialCopies, Streaming
from core.planning.expert_cache import on_the_host, set_aside, whole_experts, without_residents
from core.planning.expert_work import ExpertPrices
from core.planning.row_split import STREAMING
from core.spec import LinearPlan, Plan, Ring

Uses = Mapping[str, Sequence[float]]
"""How often each expert was used, by the path of its module."""
COPIED_AHEAD = 3
"""Experts in the ring buffer for copies that serve one pass."""
ENOUGH_HELD = 8 * COPIED_AHEAD
"""If fewer are on the device, none of them is given up for that ring buffer."""


class HeldExperts:
    """The expert caches of a module tree, and how many experts each may hold under the current plan."""

    def __init__(
        self, module: Any, found: Mapping[Any, FusedExperts], accelerator: Accelerator, inputs: SharedInputs,
        weights: Mapping[str, Sequence[HostWeight]],
    ) -> None:  # fmt: skip
        """`found`: computes all experts of a module on the CPU; `weights`: of all linears of the plan."""
        self._accelerator = accelerator
        self._weights = weights
        self._stream = accelerator.stream()
        self._caches: dict[str, ExpertCache] = {}
        self._counts: dict[str, int] = {}
        self._ring, self._serial = Ring(), False
        self._exchanges: ExpertExchanges | None = None
        self._copies: Streaming | None = None
        self._beside: ThreadPoolExecutor | None = None
        self._trial = CacheTrial()
        self._began: float | None = None
        self._modules = {path: child for path, child in module.named_modules() if child in found}
        for path, child in self._modules.items():
            self._caches[path] = ExpertCache(child, found[child], accelerator, inputs)
            self._caches[path].names = tuple(f"{path}.{leaf}" for leaf in moe.fused_names(child))

    @property
    def names(self) -> set[str]:
        """The plan's linears whose experts are held whole or not at all."""
        return {name for path in self._counts for name in self._caches[path].names}

    @property
    def use(self) -> ExpertUse | None:
        """The counts of all layers together."""
        if not self._counts:
            return None
        total = ExpertUse()
        for path in self._counts:
            total += replace(self._caches[path].use, held=len(self._caches[path].buffers))
        return total

    @property
    def uses(self) -> dict[str, list[float]]:
        """How often each expert of each layer was used, with a decay over time."""
        return {path: cache.uses.tolist() for path, cache in self._caches.items() if cache.uses.any()}

    def recall(self, uses: Uses) -> None:
        """Start with the counts of earlier replies; those of a different model are ignored."""
        for path, cache in self._caches.items():
            if len(known := uses.get(path, ())) == len(cache.uses):
                cache.uses = torch.tensor(known)

    def by_whole_ones(self, plan: Plan) -> Plan:
        """Convert a plan's resident rows of all experts into the same bytes of whole experts, which `shrink` and `fill`
        then apply. If rates are known, each pass decides who computes the other experts, instead of dividing rows."""
        self._end()
        self._counts, self._trial = dict(self._planned(plan)), CacheTrial()
        self._serial = plan.strategy == "serial"
        names = self.names
        undivided = _undivided if plan.expert_rates is None else _undecided
        linears = tuple(undivided(one) if one.name in names else one for one in plan.linears)
        plan = self._make_room(replace(plan, linears=linears))
        for path, child in self._modules.items():
            if path in self._counts:
                moe.use(child, self._caches[path])
                self._price(self._caches[path], plan)
            else:
                vars(child).pop(moe.TOGETHER, None)
                self._caches[path].forget()
        return plan

    def shrink(self) -> None:
        """Evict the experts for which there is no room."""
        for path, count in self._counts.items():
            self._caches[path].shrink(count)

    def fill(self) -> None:
        """Copy as many experts to the device as there is room for. Raises NotEnoughMemory, DeviceLost."""
        caches = [self._caches[path] for path in self._counts]
        some = [self._caches[path] for path, count in self._counts.items() if count]
        with suppress(NotEnoughMemory):  # then the experts that were filled first stay, and none is copied per pass
            if some:
                self._exchanges = ExpertExchanges(some, self._accelerator)
            if self._ring.buffers:
                make = SerialCopies if self._serial else ParameterManager
                self._copies = make(self._accelerator, self._ring, self._weights)
        if self._copies is not None:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="experts")
        for cache in caches:
            cache.copies, cache.beside = self._copies, self._beside
        for path, count in self._counts.items():
            self._caches[path].fill(count, self._stream)

    def begin_pass(self, tokens: int) -> None:
        """Begin a pass over `tokens` tokens; single-token passes are timed with and without the held experts."""
        self._began = time.perf_counter() if tokens == 1 and self._exchanges is not None else None
        rests = self._began is not None and self._trial.rests
        for path in self._counts:
            self._caches[path].rests = rests

    def end_pass(self) -> None:
        """Record the pass's time and exchange experts, if due."""
        if self._began is not None:
            self._trial.note(time.perf_counter() - self._began)
            self._began = None
        if self._exchanges is not None:
            self._exchanges.step()

    def close(self) -> None:
        """Free the device's memory; experts are then computed one by one until new ones are installed."""
        with suppress(DeviceLost):
            self._end()
        self._counts = {}
        for path, child in self._modules.items():
            vars(child).pop(moe.TOGETHER, None)
            self._caches[path].forget()

    def _end(self) -> None:
        """Stop all copies."""
        exchanges, self._exchanges = self._exchanges, None
        copies, self._copies = self._copies, None
        beside, self._beside = self._beside, None
        for cache in self._caches.values():
            cache.copies = cache.beside = None
        if beside is not None:
            beside.shutdown()
        if copies is not None:
            copies.close()
        if exchanges is not None:
            exchanges.close()

    def _make_room(self, plan: Plan) -> Plan:
        """Reserve memory for copies: the plan's ring if nothing else uses it, else part of the held experts' memory."""
        self._ring, needed = Ring(), AT_ONCE
        if plan.expert_rates is not None and self._counts:
            sizes = [self._caches[path].expert_bytes for path in self._counts]
            ring = Ring(2 * COPIED_AHEAD, max(map(max, sizes)), max(1, plan.ring.copiers))
            idle = not any(rows.streamed for linear in plan.linears for rows in linear.shares)
            if idle and plan.ring.total >= ring.total:
                self._ring, plan = ring, replace(plan, ring=Ring())
            elif sum(self._counts.values()) >= ENOUGH_HELD:
                self._ring, needed = ring, AT_ONCE - (-ring.total // sum(min(sizes, key=sum)))
        left = set_aside(tuple(self._counts.values()), needed)
        self._counts = dict(zip(self._counts, left, strict=True))
        return plan

    def _price(self, cache: ExpertCache, plan: Plan) -> None:
        rates = plan.expert_rates
        cache.prices = ExpertPrices(rates, sum(cache.expert_bytes), cache.expert_parameters) if rates else None
        cache.always_copies = plan.strategy in STREAMING

    def _planned(self, plan: Plan) -> Iterator[tuple[str, int]]:
        for path, cache in self._caches.items():
            linears = [plan.by_name[name] for name in cache.names]
            sizes, experts = cache.expert_bytes, len(cache.uses)
            shares = zip(linears, sizes, strict=True)
            given = sum(experts * size * linear.resident // linear.rows for linear, size in shares)
            if (count := whole_experts(given, sum(sizes), experts)) < experts:
                yield path, count


def _undivided(linear: LinearPlan) -> LinearPlan:
    one, few, some, many = map(without_residents, linear.shares)
    return replace(linear, shares=(one, few, some, many))


def _undecided(linear: LinearPlan) -> LinearPlan:
    whole = on_the_host(linear.rows)
    return replace(linear, shares=(whole, whole, whole, whole))
