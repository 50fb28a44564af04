"""Opens the accelerator that a plan names."""

from __future__ import annotations

from core.accelerators.base import Accelerator, device_lost
from core.accelerators.card import Card, cards
from core.accelerators.simulated import SimulatedAccelerator
from core.accelerators.simulation_spec import Simulation
from core.spec import NO_TRIAL, Abilities


def open_accelerator(
    index: int, simulation: Simulation | None = None, abilities: Abilities = NO_TRIAL
) -> Accelerator | None:
    """Open the accelerator of a plan's `gpu` index: None for -1, the simulated one if `simulation` is given.

    `abilities`: what the card's trial found.

    Raises DeviceLost.
    """
    if index < 0:
        return None
    if simulation is not None:
        return SimulatedAccelerator(simulation, index)
    found = cards()
    if index >= len(found):
        raise device_lost(f"number {index}")
    return Card(found[index], abilities)
