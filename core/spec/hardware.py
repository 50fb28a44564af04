"""The machine as the planner sees it: CPU, GPUs and links with their measured rates.

Sizes are bytes, rates bytes (or operations) per second, times seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.spec.storages import Storage


@dataclass(frozen=True)
class KernelRate:
    """How fast the CPU multiplies weights of one storage type: `bytes_s` of weights read at M = 1, at most `flops`
    operations per second in each bucket of M (2 x rows x columns x M operations per linear)."""

    storage: Storage
    bytes_s: float
    flops: tuple[float, float, float, float]

    def seconds(self, nbytes: float, operations: float, bucket: int) -> float:
        """Time for weights of `nbytes` with `operations` in all."""
        return max(nbytes / self.bytes_s, operations / self.flops[bucket])


@dataclass(frozen=True)
class Cpu:
    """The processor and its memory. `threads` is how many the rates were measured with; `call_s` one kernel call;
    `layer_s` what one layer costs besides its linears and attention (norms, rotary, Python)."""

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


@dataclass(frozen=True)
class Link:
    """The way between RAM and one GPU, bytes per second, alone on the machine. `staged`: pageable weights through the
    pinned ring to the GPU, which is what streaming really gets; `sync_s`: a small input brought to RAM and waited for;
    `back_s`: the result of one linear's CPU rows brought to the GPU; `piece_s`: what each streamed piece costs besides
    its bytes; `lockable`: whether memory could be pinned at all; `copiers`: threads that fill the ring fastest."""

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
    """One graphics card.

    `rates` by storage type where measured, else `bytes_s` and `flops`. `cpu_under_copy` and `link_under_cpu`: what is
    left of each rate (0-1) while both run. `shares_cores`: it computes on the CPU's own cores (simulated without a
    rate), so their times add up. `layer_s`: one layer besides its linears and attention, computed there. `unified`:
    what lies on the card lies in RAM, as on Apple's computers and with graphics built into a processor.
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


@dataclass(frozen=True)
class Hardware:
    """This machine. `measured` is False where the rates are guesses: from a table, or taken while others worked;
    `unusable`: why a card that is there cannot be used."""

    cpu: Cpu
    gpus: tuple[Gpu, ...] = ()
    disk_bytes_s: float = 500e6
    measured: bool = True
    unusable: tuple[str, ...] = ()
