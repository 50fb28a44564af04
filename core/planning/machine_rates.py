"""The machine's rates for the planner: a CPU, with or without a GPU, alone and while copies run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.spec import COPY_PIECE, FEW, LAYOUTS, Gpu, Hardware, KernelRate, Profile, Storage, Strategy, kin

GUESSED_BYTES_SHARE = 0.5
GUESSED_FLOPS = (50e9, 100e9, 200e9, 300e9)
LISTED_LAUNCHES = 2
"""Launches of one product of several experts: its own, and one more for the copies and small operations around it."""


@dataclass(frozen=True)
class MachineRates:
    """The rates of one placement: the CPU with or without a GPU, alone and while copies run."""

    hardware: Hardware
    gpu: Gpu | None
    profile: Profile
    threads: int

    def link_s(self, strategy: Strategy) -> float:
        """Return the seconds per streamed byte if nothing else runs."""
        if self.gpu is None:
            return 0.0
        return self.profile.link / (self.gpu.link.h2d_pageable if strategy == "serial" else self.gpu.link.staged)

    @property
    def piece_s(self) -> float:
        """Return the fixed seconds per streamed chunk."""
        return self.profile.link * self.gpu.link.piece_s if self.gpu else 0.0

    @property
    def shares_cores(self) -> bool:
        """Return whether the device computes on the CPU's own cores."""
        return self.gpu is not None and self.gpu.shares_cores

    @property
    def unified(self) -> bool:
        """Return whether the device shares the CPU's memory."""
        return self.gpu is not None and self.gpu.unified

    def launches(self, storage: Storage, active: int, bucket: int) -> int:
        """Return the launches of a linear on the card: one per active expert, or those of one list for few rows."""
        listed = self.lists(storage) and active > 1 and bucket <= FEW
        return LISTED_LAUNCHES if listed else active

    def lists(self, storage: Storage) -> bool:
        """Return whether the card multiplies all experts that few tokens need in one launch."""
        return self.gpu is not None and self.gpu.lists_weights and storage in LAYOUTS

    @property
    def replay_saves(self) -> float:
        """Return the fraction of the time of launches that a replay saves."""
        return self.gpu.replay_saves if self.gpu else 0.0

    def together_s(self, cpu_s: float, gpu_s: float) -> float:
        """Return the seconds of work that takes these times on each engine alone, started at once."""
        if self.gpu is None or self.gpu.shares_cores:
            return cpu_s + gpu_s
        cpu_part, gpu_part = self.gpu.cpu_beside, self.gpu.gpu_beside
        both = min(cpu_s / cpu_part, gpu_s / gpu_part)
        return max(cpu_s + both * (1 - cpu_part), gpu_s + both * (1 - gpu_part))

    @property
    def queue_s(self) -> float:
        """Return the mean seconds that a small copy to the card waits behind streamed chunks."""
        return COPY_PIECE / 2 / self.gpu.link.h2d_pinned if self.gpu else 0.0

    @property
    def cpu_under_copy(self) -> float:
        """Return the fraction of the CPU's rate that remains while the link copies."""
        return self.gpu.cpu_under_copy if self.gpu else 1.0

    @property
    def link_under_cpu(self) -> float:
        """Return the fraction of the link's rate that remains while the CPU computes."""
        return self.gpu.link_under_cpu if self.gpu else 1.0


def cpu_rate(hardware: Hardware, storage: Storage, threads: int) -> KernelRate:
    """Return the CPU's rate for this storage with so many threads; guessed from the memory bandwidth if not
    measured."""
    cpu = hardware.cpu
    found = _nearest(cpu.rates, storage)
    rate = found or KernelRate(storage, cpu.read_bytes_s * GUESSED_BYTES_SHARE, GUESSED_FLOPS)
    scale = min(1.0, threads / max(1, cpu.threads))
    # Half of the cores already saturate the memory; operations scale with the cores.
    return replace(rate.scaled(scale), storage=storage, bytes_s=rate.bytes_s * min(1.0, 2 * scale))


def gpu_rate(gpu: Gpu, storage: Storage) -> KernelRate:
    """Return the GPU's rate for this storage; from its bandwidth and peak operations if not measured."""
    return _nearest(gpu.rates, storage) or KernelRate(storage, gpu.bytes_s, (gpu.flops,) * 4)


def _nearest(rates: Sequence[KernelRate], storage: Storage) -> KernelRate | None:
    """Return the rate of this storage, or of the timed one that is most similar."""
    by_storage = {rate.storage: rate for rate in rates}
    return by_storage.get(storage) or by_storage.get(kin(storage))
