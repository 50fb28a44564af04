"""Opens the accelerator that a plan names."""

from __future__ import annotations

from core.accelerators.base import Accelerator, device_lost
from core.accelerators.card import Card, cards
from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import Simulation


def open_accelerator(index: int, simulation: Simulation | None = None) -> Accelerator | None:
    """Open the accelerator of a plan's `gpu` index: None for -1, the simulated one if `simulation` is given.

    Raises DeviceLost.
    """
    if index < 0:
        return None
    if simulation is not None:
        return SimulatedAccelerator(simulation, index)
    found = cards()
    if index >= len(found):
        raise device_lost(f"number {index}")
    return Card(found[index])
