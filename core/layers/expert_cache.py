"""The experts of one layer beside a device: some lie there whole, the CPU computes the others in one call.

    x -> [device: the chosen experts that it holds]  ||  [CPU: all other chosen experts, where they lie] -> y

A pass makes one exchange for a layer, and not one for each product of each expert. Which experts the device holds may
change between two passes; how often each is chosen is counted here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.layers import moe
from core.layers.fused_experts import FusedExperts
from core.offload.hetero_linear import HeteroLinear, SharedInputs
from core.offload.parameter_manager import copied_rows
from core.planning.expert_cache import hottest


@dataclass
class ExpertUse:
    """Counts of one layer or of all: experts held by the device, chosen ones that were there, and that were computed by
    the CPU, and how often one replaced another."""

    held: int = 0
    hits: int = 0
    computed: int = 0
    replaced: int = 0

    def __add__(self, other: ExpertUse) -> ExpertUse:
        return ExpertUse(
            self.held + other.held, self.hits + other.hits, self.computed + other.computed,
            self.replaced + other.replaced,
        )  # fmt: skip


class ExpertCache:
    """One experts module. `buffers` are the bytes on the device of those that it holds, one for each linear."""

    def __init__(self, module: Any, native: FusedExperts, accelerator: Accelerator, inputs: SharedInputs) -> None:
        self.linears: list[list[HeteroLinear]] = [
            [one for one in moe.linears_of(module)[name] if isinstance(one, HeteroLinear)]
            for name in moe.fused_names(module)
        ]
        self.uses = torch.zeros(module.num_experts)
        self.buffers: dict[int, list[Tensor]] = {}
        self.use = ExpertUse()
        self._there = torch.zeros(module.num_experts + 1, dtype=torch.bool)  # the last: of no expert
        self._native = native
        self._accelerator = accelerator
        self._inputs = inputs
        self._gate = module._apply_gate if module.has_gate else module.act_fn

    @property
    def expert_bytes(self) -> list[int]:
        """Bytes of one expert, by linear."""
        whole = [linears[0].host for linears in self.linears]
        return [sum(part.nbytes for part in weight.parts(0, weight.rows)) for weight in whole]

    def suits(self, x: Tensor, chosen: Tensor) -> bool:
        """Whether no rows are streamed in this pass, and our library is faster than going from expert to expert; x
        (M, K), chosen (M, k)."""
        streamed = any(linears[0].division.streamed for linears in self.linears)
        return len(x) > 0 and not streamed and self._native.takes(chosen) and x.dtype is self._native.dtype

    def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """x (M, K); chosen and shares (M, k), all on the device -> (M, K)."""
        copy = self._accelerator.to_host(x)
        numbers = chosen.cpu().clamp(max=len(self.uses))
        there = self._there[numbers]
        self._count(numbers, there)
        out = torch.zeros_like(x, dtype=torch.float32)
        if bool(there.any()):
            self._launch(x, numbers.masked_fill(~there, -1), shares, out)
        if not bool(there.all()):
            self._compute(copy.result(), numbers.masked_fill(there, len(self.uses)), shares, out)
        self._accelerator.settle()
        return out.to(x.dtype)

    def hold(self, expert: int, buffers: list[Tensor]) -> None:
        """The device has the expert from now on: its bytes have arrived in `buffers` (nbytes,), one by linear."""
        self.buffers[expert] = buffers
        self._there[expert] = True
        for linears, buffer in zip(self.linears, buffers, strict=True):
            linear = linears[expert]
            linear.resident = linear.host.on_device(buffer, 0, linear.host.rows)

    def release(self, expert: int) -> list[Tensor]:
        """The device has it no longer; its memory, (nbytes,) by linear."""
        for linears in self.linears:
            linears[expert].resident = None
        self._there[expert] = False
        return self.buffers.pop(expert)

    def shrink(self, count: int) -> None:
        """Hold at most so many, those used most; and nothing that was brought in another way."""
        uses = self.uses.tolist()
        held = sorted(self.buffers, key=lambda expert: -uses[expert])
        for expert in held[count:]:
            self.release(expert)
        for linears in self.linears:
            for expert, linear in enumerate(linears):
                if expert not in self.buffers:
                    linear.resident = None

    def forget(self) -> None:
        """What is there is someone else's from now on."""
        self.buffers.clear()
        self._there.zero_()

    def fill(self, count: int, stream: Any) -> None:
        """Bring those used most until so many are there. Raises NotEnoughMemory, DeviceLost."""
        for expert in hottest(self.uses.tolist(), len(self.uses)):
            if len(self.buffers) >= count:
                return
            if expert not in self.buffers:
                buffers = [self._accelerator.empty((nbytes,), torch.uint8) for nbytes in self.expert_bytes]
                for linears, buffer in zip(self.linears, buffers, strict=True):
                    weight = linears[expert].host
                    copied_rows(self._accelerator, stream, weight, 0, weight.rows, buffer)
                self.hold(expert, buffers)

    def _count(self, numbers: Tensor, there: Tensor) -> None:
        self.uses += torch.bincount(numbers.flatten(), minlength=len(self._there))[: len(self.uses)]
        hits = int(there.sum())
        self.use.hits += hits
        self.use.computed += int((numbers < len(self.uses)).sum()) - hits

    def _launch(self, x: Tensor, numbers: Tensor, shares: Tensor, out: Tensor) -> None:
        """What the device holds is computed there, beside what follows."""
        up, down = self.linears
        wanted = [expert for expert in torch.unique(numbers).tolist() if expert >= 0]
        places = [self._places(numbers, expert) for expert in wanted]

        def compute() -> None:
            for expert, (tokens, slots) in zip(wanted, places, strict=True):
                opened = self._gate(_product(up[expert], x[tokens]))
                y = _product(down[expert], opened)
                out.index_add_(0, tokens, (y * shares[tokens, slots, None]).float())

        self._accelerator.launch(compute, len(wanted) * sum(self.expert_bytes))

    def _places(self, numbers: Tensor, expert: int) -> Sequence[Tensor]:
        return [part.to(self._accelerator.device) for part in torch.where(numbers == expert)]

    def _compute(self, x: Tensor, numbers: Tensor, shares: Tensor, out: Tensor) -> None:
        """What it does not hold, by the CPU in one call."""
        given = shares.cpu()
        start = time.perf_counter()
        y = self._native(x.contiguous(), numbers, given)
        self._inputs.cpu_s += time.perf_counter() - start
        on_device = self._accelerator.to_device(y)
        self._accelerator.launch(lambda: out.add_(on_device))


def _product(linear: HeteroLinear, x: Tensor) -> Tensor:
    assert linear.resident is not None
    return linear.resident.linear(x, linear.bias)
