"""Experts that the device holds whole, of all layers where a plan has room for some of them and not for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from core.accelerators.base import Accelerator
from core.errors import DeviceLost, NotEnoughMemory
from core.layers import moe
from core.layers.expert_cache import ExpertCache, ExpertUse
from core.layers.expert_exchange import ExpertExchanges
from core.layers.fused_experts import FusedExperts
from core.offload.hetero_linear import SharedInputs
from core.planning.expert_cache import whole_experts, without_residents
from core.spec import LinearPlan, Plan


class HeldExperts:
    """The caches of a module tree, and what each may hold under the plan of now."""

    def __init__(
        self, module: Any, found: Mapping[Any, FusedExperts], accelerator: Accelerator, inputs: SharedInputs
    ) -> None:
        """`found`: what computes all experts of a module on the CPU."""
        self._accelerator = accelerator
        self._stream = accelerator.stream()
        self._caches: dict[str, ExpertCache] = {}
        self._counts: dict[str, int] = {}
        self._exchanges: ExpertExchanges | None = None
        self._modules = {path: child for path, child in module.named_modules() if child in found}
        for path, child in self._modules.items():
            self._caches[path] = ExpertCache(child, found[child], accelerator, inputs)

    @property
    def names(self) -> set[str]:
        """The plan's linears whose experts are held whole, or not at all."""
        return {f"{path}.{leaf}" for path in self._counts for leaf in moe.fused_names(self._modules[path])}

    @property
    def use(self) -> ExpertUse | None:
        """The counts of all layers together."""
        if not self._counts:
            return None
        total = ExpertUse()
        for path in self._counts:
            total += replace(self._caches[path].use, held=len(self._caches[path].buffers))
        return total

    def by_whole_ones(self, plan: Plan) -> Plan:
        """The same bytes on the device, as whole experts where they were rows of all: what `shrink` and `fill` do."""
        self._end_exchanges()
        self._counts = dict(self._planned(plan))
        for path, child in self._modules.items():
            if path in self._counts:
                moe.use(child, self._caches[path])
            else:
                vars(child).pop(moe.TOGETHER, None)
                self._caches[path].forget()
        names = self.names
        return replace(plan, linears=tuple(_undivided(one) if one.name in names else one for one in plan.linears))

    def shrink(self) -> None:
        """Let go of what there is no room for."""
        for path, count in self._counts.items():
            self._caches[path].shrink(count)

    def fill(self) -> None:
        """Bring as many as there is room for, less one, whose memory others come to. Raises
        NotEnoughMemory, DeviceLost."""
        some = [self._caches[path] for path, count in self._counts.items() if count]
        if not some:
            return
        with suppress(NotEnoughMemory):  # then those that come first stay
            self._exchanges = ExpertExchanges(some, self._accelerator)
        first = next(path for path, count in self._counts.items() if count)
        for path, count in self._counts.items():
            self._caches[path].fill(count - 1 if path == first and self._exchanges else count, self._stream)

    def end_pass(self) -> None:
        """Between two passes."""
        if self._exchanges is not None:
            self._exchanges.step()

    def close(self) -> None:
        """Give the device's memory back; the experts are computed one by one until others are put in."""
        with suppress(DeviceLost):
            self._end_exchanges()
        self._counts = {}
        for path, child in self._modules.items():
            vars(child).pop(moe.TOGETHER, None)
            self._caches[path].forget()

    def _end_exchanges(self) -> None:
        exchanges, self._exchanges = self._exchanges, None
        if exchanges is not None:
            exchanges.close()

    def _planned(self, plan: Plan) -> Iterator[tuple[str, int]]:
        for path, cache in self._caches.items():
            linears = [plan.by_name[f"{path}.{leaf}"] for leaf in moe.fused_names(self._modules[path])]
            sizes, experts = cache.expert_bytes, len(cache.uses)
            shares = zip(linears, sizes, strict=True)
            given = sum(experts * size * linear.resident // linear.rows for linear, size in shares)
            if (count := whole_experts(given, sum(sizes), experts)) < experts:
                yield path, count


def _undivided(linear: LinearPlan) -> LinearPlan:
    one, few, some, many = map(without_residents, linear.shares)
    return replace(linear, shares=(one, few, some, many))
