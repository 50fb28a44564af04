"""The experts of a layer split between a device and the CPU: held by the device, computed by the CPU, or copied.

    x -> [device: chosen experts that it holds | copied ones, as they arrive]  ||  [CPU: the others in one call] -> y

A pass takes one exchange per layer instead of one for each product of each expert. The set of held experts may change
between two passes; this class counts how often each is chosen. `core.planning.expert_work` decides for each pass who
computes which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.accelerators.base import Accelerator
from core.layers import moe
from core.layers.fused_experts import FusedExperts
from core.layers.held_at_once import Routed, held_at_once
from core.offload.hetero_linear import HeteroLinear, SharedInputs
from core.offload.host_weight import DeviceRows
from core.offload.parameter_manager import Chunk, Streaming, copied_rows
from core.planning.expert_cache import hottest
from core.planning.expert_work import ExpertDivision, ExpertPrices, divide_experts, learned, learned_by_copying


@dataclass
class ExpertUse:
    """Counters of one layer or of all.

    `held`: experts held by the device. Of the chosen ones, `hits` were computed there, `copied` were copied to it
    first, and `computed` were computed by the CPU. `replaced`: number of exchanges.
    """

    held: int = 0
    hits: int = 0
    copied: int = 0
    computed: int = 0
    replaced: int = 0

    def __add__(self, other: ExpertUse) -> ExpertUse:
        return ExpertUse(
            self.held + other.held, self.hits + other.hits, self.copied + other.copied, self.computed + other.computed,
            self.replaced + other.replaced,
        )  # fmt: skip


class Computed(NamedTuple):
    """The CPU's part of the sum (M, K), and the seconds it took."""

    y: Tensor
    seconds: float


class ExpertCache:
    """The experts of one module.

    `buffers`: device memory of the held experts, one buffer per linear; `copies` streams others for one pass, and
    `names` are its names of the linears; `beside` is the thread in which the CPU computes meanwhile; `rests`: held
    experts are not used.
    """

    def __init__(self, module: Any, native: FusedExperts, accelerator: Accelerator, inputs: SharedInputs) -> None:
        self.linears: list[list[HeteroLinear]] = [
            [one for one in moe.linears_of(module)[name] if isinstance(one, HeteroLinear)]
            for name in moe.fused_names(module)
        ]
        self.uses = torch.zeros(module.num_experts)
        self.buffers: dict[int, list[Tensor]] = {}
        self.use = ExpertUse()
        self.prices: ExpertPrices | None = None
        self.copies: Streaming | None = None
        self.beside: Executor | None = None
        self.names: tuple[str, ...] = ()
        self.always_copies = self.rests = False
        self._native = native
        self._nearby: FusedExperts | None = None
        self._accelerator = accelerator
        self._inputs = inputs
        self._gate = module._apply_gate if module.has_gate else module.act_fn
        self.at_once = held_at_once(self.linears, self._gate, accelerator)

    @property
    def expert_bytes(self) -> list[int]:
        """Return the bytes of one expert, by linear."""
        whole = [linears[0].host for linears in self.linears]
        return [sum(part.nbytes for part in weight.parts(0, weight.rows)) for weight in whole]

    @property
    def expert_parameters(self) -> int:
        """Return the number of weights of one expert."""
        return sum(linears[0].host.rows * linears[0].host.columns for linears in self.linears)

    def suits(self, x: Tensor, chosen: Tensor) -> bool:
        """Return whether the library takes x (M, K) and chosen (M, k), is faster than the loop, and nothing streams."""
        streamed = any(linears[0].division.streamed for linears in self.linears)
        return len(x) > 0 and not streamed and self._native.takes(chosen) and x.dtype is self._native.dtype

    def __call__(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """x (M, K); chosen and shares (M, k), all on the device -> (M, K)."""
        start = time.perf_counter()
        x, numbers = x.contiguous(), chosen.cpu().clamp(max=len(self.uses))
        tokens = self._count(numbers)
        work = self._divide(tokens)
        copy = self._accelerator.to_host(x) if work.computed else None
        routed = Routed(x, numbers, shares, torch.zeros_like(x, dtype=torch.float32))
        if work.copied:
            self._order(work.copied)
        if work.held:
            self._launch_held(routed, work, tokens)
        computed = None if copy is None else self._started(copy.result(), routed, work)
        for expert in work.copied:
            self._launch_copied(expert, routed)
        if computed is not None:
            self._add_computed(computed(), routed, work, tokens)
        self._accelerator.settle()
        if self.prices is not None and work.expected:
            self.prices = learned_by_copying(self.prices, work.expected, time.perf_counter() - start)
        return routed.out.to(x.dtype)

    def launch_each(self, experts: Sequence[int], routed: Routed) -> None:
        """Add the parts of these held experts, computed one by one on the device."""
        held = [[linears[expert].resident for linears in self.linears] for expert in experts]
        places = [self._places(routed, expert) for expert in experts]

        def compute() -> None:
            for expert, (up, down), at in zip(experts, held, places, strict=True):
                assert up is not None
                assert down is not None
                self._add(expert, down, self._opened(expert, up, routed, at), routed, at)

        self._accelerator.launch(compute, len(experts) * sum(self.expert_bytes))

    def hold(self, expert: int, buffers: list[Tensor]) -> None:
        """Make the device hold an expert, whose bytes have arrived in `buffers` (nbytes,), one per linear."""
        self.buffers[expert], self._nearby = buffers, None
        for linears, buffer in zip(self.linears, buffers, strict=True):
            linear = linears[expert]
            linear.resident = linear.host.on_device(self._accelerator, buffer, 0, linear.host.rows)

    def release(self, expert: int) -> list[Tensor]:
        """Make the device no longer hold an expert; return its buffers, (nbytes,) by linear."""
        self._nearby = None
        for linears in self.linears:
            linears[expert].resident = None
        return self.buffers.pop(expert)

    def shrink(self, count: int) -> None:
        """Hold at most `count` experts, those used most, and drop rows that were made resident in any other way."""
        uses = self.uses.tolist()
        held = sorted(self.buffers, key=lambda expert: -uses[expert])
        for expert in held[count:]:
            self.release(expert)
        for linears in self.linears:
            for expert, linear in enumerate(linears):
                if expert not in self.buffers:
                    linear.resident = None

    def forget(self) -> None:
        """Drop all references to device memory, which belongs to someone else from now on."""
        self.buffers.clear()
        self._nearby = self.copies = self.beside = None

    def fill(self, count: int, stream: Any) -> None:
        """Copy the most used experts until `count` are held. Raises NotEnoughMemory, DeviceLost."""
        for expert in hottest(self.uses.tolist(), len(self.uses)):
            if len(self.buffers) >= count:
                return
            if expert not in self.buffers:
                buffers = [self._accelerator.empty((nbytes,), torch.uint8) for nbytes in self.expert_bytes]
                for linears, buffer in zip(self.linears, buffers, strict=True):
                    weight = linears[expert].host
                    copied_rows(self._accelerator, stream, weight, 0, weight.rows, buffer)
                self.hold(expert, buffers)

    def _count(self, numbers: Tensor) -> dict[int, int]:
        """Return the number of tokens by chosen expert, and add them to the use counts."""
        counts = torch.bincount(numbers.flatten(), minlength=len(self.uses) + 1)[: len(self.uses)]
        self.uses += counts
        return {expert: count for expert, count in enumerate(counts.tolist()) if count}

    def _divide(self, tokens: dict[int, int]) -> ExpertDivision:
        work = self._division(tokens)
        self.use.hits += sum(tokens[expert] for expert in work.held)
        self.use.copied += sum(tokens[expert] for expert in work.copied)
        self.use.computed += sum(tokens[expert] for expert in work.computed)
        return work

    def _division(self, tokens: dict[int, int]) -> ExpertDivision:
        """Divide by measured prices if known; otherwise the device computes the experts that it holds."""
        held = {} if self.rests else self.buffers
        there = tuple(expert for expert in tokens if expert in held)
        away = tuple(expert for expert in tokens if expert not in held)
        if self.always_copies and self.copies is not None:
            return ExpertDivision(there, away, ())
        if self.prices is None or self.rests:
            return ExpertDivision(there, (), away)
        return divide_experts(tokens, held, self.prices, can_copy=self.copies is not None)

    def _launch_held(self, routed: Routed, work: ExpertDivision, tokens: dict[int, int]) -> None:
        """Launch the held experts on the device, asynchronously to what follows."""
        each = sum(self.expert_bytes)
        if self._accelerator.device.type == "cpu":  # its memory is RAM, where only the CPU's kernels are fast
            native, chosen = self._in_ram(), self._only(routed.numbers, work.held)
            self._accelerator.launch(
                lambda: routed.out.add_(native(routed.x, chosen, routed.shares)), len(work.held) * each
            )
            return
        at_once = self.at_once
        few = [expert for expert in work.held if at_once is not None and at_once.takes(tokens[expert])]
        if at_once is not None and few:
            at_once.launch(few, routed, len(few) * each)
        if others := [expert for expert in work.held if expert not in few]:
            self.launch_each(others, routed)

    def _in_ram(self) -> FusedExperts:
        """Return the native call for experts held by a device whose memory is RAM."""
        if self._nearby is None:
            up, down = (
                [one.host.weight if one.resident is None else one.resident.weight for one in linears]
                for linears in self.linears
            )
            self._nearby = self._native.with_weights(up, down)
        return self._nearby

    def _launch_copied(self, expert: int, routed: Routed) -> None:
        """Launch an expert on the device after its arrival."""
        up, down = self._chunks(expert)
        at, opened = self._places(routed, expert), list[Tensor]()
        with self._taken(up) as first:
            self._accelerator.launch(
                lambda: opened.append(self._opened(expert, first, routed, at)), self.expert_bytes[0]
            )
        with self._taken(down) as second:
            self._accelerator.launch(lambda: self._add(expert, second, opened[0], routed, at), self.expert_bytes[1])

    def _taken(self, chunk: Chunk) -> AbstractContextManager[DeviceRows]:
        assert self.copies is not None
        if not self.copies.has_ready(chunk):
            self._accelerator.settle()  # the ring may wait for work that a simulated device only does when asked to
        return self.copies.take(chunk)

    def _order(self, experts: Sequence[int]) -> None:
        assert self.copies is not None
        self.copies.begin_pass([chunk for expert in experts for chunk in self._chunks(expert)], again=False)

    def _chunks(self, expert: int) -> list[Chunk]:
        whole = zip(self.names, self.linears, strict=True)
        return [Chunk(name, 0, linears[expert].host.rows, expert) for name, linears in whole]

    def _places(self, routed: Routed, expert: int) -> Sequence[Tensor]:
        return [part.to(self._accelerator.device) for part in routed.places(expert)]

    def _only(self, numbers: Tensor, experts: Sequence[int]) -> Tensor:
        """Return the chosen experts (M, k), with those not in `experts` replaced by an invalid number."""
        wanted = torch.zeros(len(self.uses) + 1, dtype=torch.bool)
        wanted[torch.tensor(experts)] = True
        return numbers.masked_fill(~wanted[numbers], len(self.uses))

    def _started(self, x: Tensor, routed: Routed, work: ExpertDivision) -> Callable[[], Computed]:
        """Compute the CPU's experts in one call, for the rows x (M, K) in RAM; return how to get the result.

        If experts are copied, that runs in a thread of its own: the ring holds few of them, so copies only continue
        while this thread takes those that have arrived.
        """
        shares, chosen = routed.shares.cpu(), self._only(routed.numbers, work.computed)

        def compute() -> Computed:
            with torch.inference_mode():
                start = time.perf_counter()
                return Computed(self._native(x, chosen, shares), time.perf_counter() - start)

        if work.copied and self.beside is not None:
            return self.beside.submit(compute).result
        found = compute()
        return lambda: found

    def _add_computed(self, found: Computed, routed: Routed, work: ExpertDivision, tokens: dict[int, int]) -> None:
        self._inputs.cpu_s += found.seconds
        if self.prices is not None and not work.copied:
            self.prices = learned(self.prices, [tokens[expert] for expert in work.computed], found.seconds)
        on_device = self._accelerator.to_device(found.y)
        self._accelerator.launch(lambda: routed.out.add_(on_device))

    def _opened(self, expert: int, up: DeviceRows, routed: Routed, at: Sequence[Tensor]) -> Tensor:
        """Return an expert's first product, gated (n, K), for the rows at these places."""
        opened: Tensor = self._gate(up.linear(routed.x[at[0]], self.linears[0][expert].bias))
        return opened

    def _add(self, expert: int, down: DeviceRows, opened: Tensor, routed: Routed, at: Sequence[Tensor]) -> None:
        """Add an expert's second product, with `opened` (n, K), for the rows at these places."""
        routed.add(down.linear(opened, self.linears[1][expert].bias), *at)
