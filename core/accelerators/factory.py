"""From a plan's device to the accelerator that carries it out."""

from __future__ import annotations

from core.accelerators.base import Accelerator
from core.accelerators.cuda import CudaAccelerator
from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import Simulation


def open_accelerator(index: int, simulation: Simulation | None = None) -> Accelerator | None:
    """The accelerator of a plan's `gpu` index: None for -1, the simulated one if that is what was planned for."""
    if index < 0:
        return None
    return CudaAccelerator(index) if simulation is None else SimulatedAccelerator(simulation, index)
