"""This machine as the loader uses it: its measured record, its devices, and its fastest kernels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from core.accelerators.base import Accelerator
from core.accelerators.factory import open_accelerator
from core.accelerators.simulation_spec import Simulation, parse_simulation
from core.errors import DeviceLost
from core.hardware.benchmark import present_paces
from core.hardware.cpu_info import cpu_info, ram
from core.hardware.profile import measured_machine, refreshed, rescaled
from core.kernels.autotune import KernelTable
from core.spec import NO_TRIAL, Cpu, Gpu, Hardware, KernelRate, Link, Storage

STORAGES: tuple[Storage, ...] = ("bf16", "fp16", "fp32", "int8", "int4")
# Those of a laptop some years old: memory bytes per second, operations per second by bucket of input rows.
TYPICAL_BYTES_S = 20e9
TYPICAL_FLOPS = (10e9, 20e9, 50e9, 100e9)


@dataclass
class Machine:
    """`hardware`: measured once; `accelerators`: by GPU index, opened when a plan uses them; `reserved`: bytes of a GPU
    that we use and that stay in use whatever is planned."""

    hardware: Hardware
    kernels: KernelTable
    simulate_gpu: str | None
    accelerators: dict[int, Accelerator]
    reserved: dict[int, int] = field(default_factory=dict)

    def now(self) -> Hardware:
        """Return the record with the currently free memory, counting what we hold on a device as free."""
        hardware = refreshed(self.hardware)
        return replace(hardware, gpus=tuple(self._freed(gpu) for gpu in hardware.gpus))

    def keep_pace(self) -> None:
        """Rescale the CPU's rates to its current speed, which heat, power settings and other programs change. Takes
        about 0.4 s."""
        cpu, before = self.hardware.cpu, torch.get_num_threads()
        torch.set_num_threads(cpu.threads)
        try:
            self.hardware = rescaled(self.hardware, present_paces(self.kernels, cpu.rates, cpu.call_s))
        finally:
            torch.set_num_threads(before)

    def without_gpus(self) -> Hardware:
        """Return the record as if no device could be used."""
        return replace(refreshed(self.hardware), gpus=())

    def accelerator(self, index: int) -> Accelerator:
        """Return the device of a GPU of the record. Raises DeviceLost."""
        if index not in self.accelerators:
            simulation = parse_simulation(self.simulate_gpu) if self.simulate_gpu else None
            abilities = next((gpu.abilities for gpu in self.hardware.gpus if gpu.index == index), NO_TRIAL)
            opened = open_accelerator(index, simulation, abilities)
            assert opened is not None
            self.accelerators[index] = opened
        return self.accelerators[index]

    def forget_lost(self) -> bool:
        """Close devices that stopped answering, so that they are reopened; return whether there was one."""
        lost = [index for index, accelerator in self.accelerators.items() if _is_lost(accelerator)]
        for index in lost:
            self.accelerators.pop(index).close()
        return bool(lost)

    def close(self) -> None:
        """Close all devices."""
        for accelerator in self.accelerators.values():
            accelerator.close()
        self.accelerators.clear()

    def _freed(self, gpu: Gpu) -> Gpu:
        if gpu.index not in self.accelerators:
            return gpu
        memory = self.accelerators[gpu.index].memory()
        ours = memory.used - self.reserved.get(gpu.index, 0)
        return replace(gpu, vram_free=max(0, memory.free + ours))


def _is_lost(accelerator: Accelerator) -> bool:
    try:
        accelerator.memory()
    except DeviceLost:
        return True
    return False


def open_machine(folder: Path, simulate_gpu: str | None = None, threads: int | None = None) -> Machine:
    """Measure this machine, or load its record from `folder`. Raises BadRequest."""
    hardware, kernels = measured_machine(folder, simulate_gpu, threads)
    return Machine(hardware, kernels, simulate_gpu, {})


def assume_machine(simulate_gpu: str | None = None, threads: int | None = None) -> Machine:
    """Return this machine with rates from a table: enough to place a model so small that it is fast anywhere."""
    info, (total, free) = cpu_info(), ram()
    count = threads or info.physical_cores
    rates = tuple(KernelRate(storage, TYPICAL_BYTES_S, TYPICAL_FLOPS) for storage in STORAGES)
    cpu = Cpu(info.name, info.physical_cores, info.logical_cores, info.isa, total, free, TYPICAL_BYTES_S, rates, count)
    gpus = (_assumed_gpu(parse_simulation(simulate_gpu)),) if simulate_gpu else ()
    return Machine(Hardware(cpu, gpus, measured=False), KernelTable(count), simulate_gpu, {})


def _assumed_gpu(simulation: Simulation) -> Gpu:
    speed = simulation.link
    link = Link(speed, speed, speed, speed, speed)
    rate = simulation.gpu or TYPICAL_BYTES_S
    return Gpu(
        "Simulated GPU", 0, simulation.vram, simulation.vram, rate, TYPICAL_FLOPS[-1], link,
        simulated=True, shares_cores=simulation.gpu is None and not simulation.cores, kind="simulated", requested=True,
    )  # fmt: skip
