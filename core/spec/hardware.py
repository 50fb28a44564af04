"""The machine as the planner sees it: CPU, GPUs and links with their measured rates.

Sizes are in bytes, rates in bytes (or operations) per second, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.spec.abilities import NO_TRIAL, Abilities
from core.spec.formats import BUCKET_LIMITS, BUCKET_TOKENS, DECODE, FEW
from core.spec.storages import Storage

AT_ONCE = 8
"""Rows of input that kernels multiply at a time; more take several turns."""


@dataclass(frozen=True)
class KernelRate:
    """A CPU's or GPU's rate for weights of one storage: `bytes_s` of weights read at M = 1, and at most `flops`
    operations per second in each bucket of M (2 x rows x columns x M operations per linear). `most`: the same with the
    most rows of the bucket FEW; 0 = not measured."""

    storage: Storage
    bytes_s: float
    flops: tuple[float, float, float, float]
    most: float = 0.0

    def seconds(self, nbytes: float, operations: float, bucket: int) -> float:
        """Return the time for weights of `nbytes` with `operations` in total."""
        return max(nbytes / self.bytes_s, operations / self.flops[bucket])

    def scaled(self, by: float) -> KernelRate:
        """Return the rate at a multiple of the speed."""
        one, few, some, many = (by * flops for flops in self.flops)
        return KernelRate(self.storage, by * self.bytes_s, (one, few, some, many), by * self.most)

    def for_rows(self, rows: int) -> KernelRate:
        """Return the rate with so many rows, of those in the bucket FEW, as its example."""
        if rows == BUCKET_TOKENS[FEW]:
            return self
        one, _, some, many = self.flops
        return replace(self, flops=(one, rows / self._few_s(rows), some, many))

    def _few_s(self, rows: int) -> float:
        """Return the time of `rows` rows, in seconds per operation of one of them.

        A line through one row and the bucket's example, and beyond AT_ONCE one to the most rows.
        """
        example, limit = BUCKET_TOKENS[FEW], BUCKET_LIMITS[FEW]
        one = 1 / self.flops[DECODE]
        row = max(0.0, example / self.flops[FEW] - one) / (example - 1)
        if not self.most or rows <= AT_ONCE:
            return one + (rows - 1) * row
        turn = one + (AT_ONCE - 1) * row
        return turn + (rows - AT_ONCE) / (limit - AT_ONCE) * max(0.0, limit / self.most - turn)


@dataclass(frozen=True)
class Cpu:
    """The processor and its memory. `threads`: the number used for measuring; `call_s`: one kernel call; `layer_s`: a
    layer's cost in addition to linears and attention (norms, rotary embedding, Python); `run_s`: the same for one that
    our library computes in one call with others, calls of its linears included; `pass_s`: what Python does around the
    layers of a pass and for the token drawn after it; `score_s`: the cost of drawing it, per vocabulary entry;
    `state_s`: what torch does between linears for many rows, per row and column of what a linear takes or gives."""

    name: str
    physical_cores: int
    logical_cores: int
    isa: tuple[str, ...]
    ram_total: int
    ram_free: int
    read_bytes_s: float
    rates: tuple[KernelRate, ...]
    threads: int = 1
    call_s: float = 8e-6
    layer_s: float = 250e-6
    score_s: float = 3e-9
    run_s: float = 20e-6
    pass_s: float = 250e-6
    state_s: float = 0.3e-9


@dataclass(frozen=True)
class Link:
    """The link between RAM and one GPU, in bytes per second, measured on an idle machine. `staged`: pageable weights
    copied through the pinned ring, the rate of streaming; `sync_s`: copying a small input to RAM and waiting for it;
    `back_s`: copying the result of a linear's CPU rows to the GPU; `piece_s`: the cost of each streamed piece besides
    its bytes; `lockable`: whether memory could be pinned at all; `copiers`: the number of threads that fill the ring
    fastest."""

    h2d_pinned: float
    h2d_pageable: float
    d2h_pinned: float
    d2h_pageable: float
    staged: float
    sync_s: float = 30e-6
    back_s: float = 10e-6
    piece_s: float = 50e-6
    lockable: bool = True
    copiers: int = 1


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    `rates` by storage where measured, otherwise `bytes_s` and `flops`. `cpu_under_copy` and `link_under_cpu`: the
    fraction (0-1) of each rate that remains while both run. `shares_cores`: it computes on the CPU's own cores
    (simulated without a rate), so that their times add up. `layer_s`: a layer's cost besides linears and attention.
    `unified`: its memory is RAM, as on Apple silicon and integrated GPUs. `in_place`: it can read weights there,
    without copies. `graphs`: it can replay captured work. `replay_saves`: the fraction (0-1) of the time of launches
    that this saves; 0 = not measured. `cpu_beside` and `gpu_beside`: the fraction (0-1) of each rate that remains while
    CPU and GPU compute at the same time; less than 1 if they share the memory's bandwidth.
    `lists_weights`: it multiplies several quantised weights with few rows each in one launch. `requested`: the user
    asked for it by name, so it is used for what fits even if the CPU alone is expected to be faster. `abilities`: the
    faster ways that its trial found.
    """

    name: str
    index: int
    vram_total: int
    vram_free: int
    bytes_s: float
    flops: float
    link: Link
    rates: tuple[KernelRate, ...] = ()
    cpu_under_copy: float = 1.0
    link_under_cpu: float = 1.0
    launch_s: float = 10e-6
    layer_s: float = 250e-6
    simulated: bool = False
    shares_cores: bool = False
    kind: str = "cuda"
    unified: bool = False
    graphs: bool = False
    lists_weights: bool = False
    requested: bool = False
    replay_saves: float = 0.0
    in_place: bool = False
    cpu_beside: float = 1.0
    gpu_beside: float = 1.0
    abilities: Abilities = NO_TRIAL


@dataclass(frozen=True)
class Hardware:
    """This machine. `measured` is False if the rates are estimates, from a table or taken under load; `unusable`: why
    GPUs that are present cannot be used."""

    cpu: Cpu
    gpus: tuple[Gpu, ...] = ()
    disk_bytes_s: float = 500e6
    measured: bool = True
    unusable: tuple[str, ...] = ()
