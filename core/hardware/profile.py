"""This machine as the planner sees it: free memory queried each time, speed measured once.

`measured_machine` stores measurements in one file of its folder, keyed by processor, memory, GPUs, driver, torch, our
kernels and threads: if any of these changes, the machine is measured again. Torch is imported within functions only.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from core.accelerators.simulation_spec import Simulation, parse_simulation
from core.errors import HeteGenError
from core.files import keep
from core.graphics.builds import driver_for
from core.graphics.find import find_cards
from core.hardware.cpu_info import CpuInfo, cpu_info, ram
from core.hardware.disk_rate import measure_disk
from core.spec import Cpu, Gpu, Hardware, KernelRate, Link, Storage, parse_abilities

if TYPE_CHECKING:
    import torch

    from core.hardware.benchmark import CpuRates, GpuRates
    from core.kernels.autotune import KernelTable

PROFILE_FILE = "hardware.json"
PROFILE_VERSION = 12
"""Incremented when the meaning of a measurement changes."""
KEPT_PROFILES = 8
UNKNOWN_DISK_RATE = 1e9
SAME_PACE, LEAST_PACE, MOST_PACE = 0.05, 0.4, 2.0
"""A relative difference in speed that is noise, and the plausible range of a short measurement."""
TOO_BUSY, MOST_TRIES = 0.2, 3
"""If others used more than this fraction of the processor, the rates are used but measured again in the next runs."""

_measuring = Lock()
"""Held while measuring: two measurements would disturb each other, and the second one finds the first one's result."""


@dataclass(frozen=True)
class CardFacts:
    """A GPU that torch can use, as described by the driver."""

    index: int
    name: str
    total: int
    kind: str = "cuda"
    unified: bool = False


@dataclass(frozen=True)
class MachineProfile:
    """The measurements of this machine as stored on disk. `gpus`: rates, or a sentence why a GPU cannot be used;
    `busy`: fraction of the processor used by others meanwhile; `tries`: how often it was measured for a better result.
    """

    cpu: CpuRates
    gpus: tuple[GpuRates | str, ...]
    disk_bytes_s: float
    busy: float = 0.0
    tries: int = 1


def measured_machine(
    folder: Path, simulate_gpu: str | None = None, threads: int | None = None
) -> tuple[Hardware, KernelTable]:
    """Return the machine's record and the timings of the CPU's kernels, measured if necessary. Raises BadRequest.

    `simulate_gpu` (as on the command line) replaces the real GPUs by a simulated one.
    """
    simulation = parse_simulation(simulate_gpu) if simulate_gpu else None
    info, cards = cpu_info(), _cards() if simulation is None else []
    with _measuring:
        profile = load_or_measure(folder, info, cards, simulation, threads)
    total, free = ram()
    rates = profile.cpu
    cpu = Cpu(
        info.name, info.physical_cores, info.logical_cores, info.isa, total, free, rates.read_bytes_s, rates.rates,
        rates.threads, rates.call_s, rates.layer_s, rates.score_s, rates.run_s, rates.pass_s,
        rates.state_s,
    )  # fmt: skip
    unusable = tuple(one for one in profile.gpus if isinstance(one, str))
    if simulation is not None:
        gpus = tuple(_simulated(simulation, one) for one in profile.gpus if not isinstance(one, str))
    else:
        found = zip(cards, profile.gpus, strict=True)
        gpus = tuple(_gpu(card, one) for card, one in found if not isinstance(one, str))
    hardware = Hardware(cpu, gpus, profile.disk_bytes_s, profile.busy <= TOO_BUSY, unusable)
    return hardware, rates.table


def refreshed(hardware: Hardware) -> Hardware:
    """Return the same machine with the currently free memory."""
    cpu = replace(hardware.cpu, ram_free=ram()[1])
    gpus = tuple(gpu if gpu.simulated else replace(gpu, vram_free=_vram_free(gpu.index)) for gpu in hardware.gpus)
    return replace(hardware, cpu=cpu, gpus=gpus)


def rescaled(hardware: Hardware, paces: Mapping[Storage, float]) -> Hardware:
    """Scale CPU rates to the current speed: `paces` are factors by storage, clamped to plausible values. Other storages
    and call overheads use the first factor."""
    if all(abs(pace - 1) < SAME_PACE for pace in paces.values()):
        return hardware
    believed = {storage: min(max(pace, LEAST_PACE), MOST_PACE) for storage, pace in paces.items()}
    pace = next(iter(believed.values()))
    cpu = replace(
        hardware.cpu,
        read_bytes_s=pace * hardware.cpu.read_bytes_s,
        rates=_scaled(hardware.cpu.rates, believed),
        call_s=hardware.cpu.call_s / pace,
        layer_s=hardware.cpu.layer_s / pace,
        score_s=hardware.cpu.score_s / pace,
        run_s=hardware.cpu.run_s / pace,
        pass_s=hardware.cpu.pass_s / pace,
        state_s=hardware.cpu.state_s / pace,
    )
    return replace(hardware, cpu=cpu, gpus=tuple(_gpu_at_pace(gpu, believed) for gpu in hardware.gpus))


def _gpu_at_pace(gpu: Gpu, paces: Mapping[Storage, float]) -> Gpu:
    if not gpu.shares_cores:
        return gpu
    pace = next(iter(paces.values()))
    return replace(
        gpu, bytes_s=pace * gpu.bytes_s, flops=pace * gpu.flops, rates=_scaled(gpu.rates, paces),
        launch_s=gpu.launch_s / pace, layer_s=gpu.layer_s / pace,
    )  # fmt: skip


def _scaled(rates: tuple[KernelRate, ...], paces: Mapping[Storage, float]) -> tuple[KernelRate, ...]:
    first = next(iter(paces.values()))

    def scaled(rate: KernelRate) -> KernelRate:
        return rate.scaled(paces.get(rate.storage, first))

    return tuple(map(scaled, rates))


def forget(folder: Path) -> None:
    """Delete all measurements, so that the machine is measured again next time."""
    (folder / PROFILE_FILE).unlink(missing_ok=True)


def load_or_measure(
    folder: Path, info: CpuInfo, cards: list[CardFacts], simulation: Simulation | None, threads: int | None
) -> MachineProfile:
    """Return the profile of this machine in its current configuration: stored, or measured now and stored in
    `folder`."""
    import torch

    from core.kernels import native_abi

    lent = simulation.cores if simulation else 0
    wanted = threads or max(1, info.physical_cores - lent)
    total = ram()[0]
    facts = [PROFILE_VERSION, asdict(info), total, torch.__version__, driver_version(), wanted]
    facts += [native_abi.VERSION, native_abi.instruction_sets()]
    facts += [[asdict(card) for card in cards], asdict(simulation) if simulation else None]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    known = kept_profiles(folder)
    before = known.get(key)
    if before is None or (_may_improve(before) and before.tries < MOST_TRIES):
        measured = measured_profile(folder, cards, simulation, wanted)
        best = measured if before is None or measured.busy < before.busy else before
        known[key] = replace(best, tries=before.tries + 1 if before else 1)
        _write(folder, known)
    return known[key]


def _may_improve(profile: MachineProfile) -> bool:
    return profile.busy > TOO_BUSY or any(isinstance(one, str) for one in profile.gpus)


def measured_profile(
    folder: Path, cards: list[CardFacts], simulation: Simulation | None, threads: int
) -> MachineProfile:
    """Measure processor, GPUs and disk now, in some seconds."""
    import torch

    from core.hardware.benchmark import Neighbours, measure_cpu

    with suppress(OSError):  # without a place to write, the disk's rate stays unknown
        folder.mkdir(parents=True, exist_ok=True)
    before, neighbours = torch.get_num_threads(), Neighbours()
    torch.set_num_threads(threads)
    try:
        cpu = measure_cpu()
        indices = [0] if simulation else [card.index for card in cards]
        gpus = tuple(_measured_gpu(index, simulation, cpu) for index in indices)
        return MachineProfile(cpu, gpus, measure_disk(folder) or UNKNOWN_DISK_RATE, neighbours.share())
    finally:
        torch.set_num_threads(before)


def _measured_gpu(index: int, simulation: Simulation | None, cpu: CpuRates) -> GpuRates | str:
    """Return a GPU's rates, or why it cannot be used: a full, old or broken GPU must not prevent CPU use."""
    from core.accelerators.factory import open_accelerator
    from core.accelerators.trial import Trial, tried
    from core.hardware.benchmark import measure_beside, measure_gpu
    from core.hardware.call_overhead import replay_saves

    trial = Trial("") if simulation else tried(index)
    if trial.why:
        return trial.why
    try:
        accelerator = open_accelerator(index, simulation, trial.abilities)
        assert accelerator is not None
        rates = measure_gpu(accelerator, cpu)
        saves = replay_saves(accelerator) if trial.graphs else 0.0
        beside = measure_beside(accelerator, cpu.table) if trial.unified else (1.0, 1.0)
        accelerator.close()
        return replace(
            rates, graphs=trial.graphs, replay_saves=saves, in_place=trial.in_place, cpu_beside=beside[0],
            gpu_beside=beside[1], abilities=trial.abilities,
        )  # fmt: skip
    except HeteGenError as error:
        return " ".join(part for part in (error.what, error.why) if part)


def _cards() -> list[CardFacts]:
    """Return the cards as their driver describes them, without using them: only their trials may do that first."""
    from core.accelerators.card import cards

    return [_facts(one) for one in cards()]


def _facts(device: torch.device) -> CardFacts:
    from core.accelerators.capabilities import capabilities_of, has_unified_memory, name_of

    try:
        total = capabilities_of(device).total(device)
        return CardFacts(device.index, name_of(device), total, device.type, has_unified_memory(device))
    except RuntimeError as error:  # its trial fails likewise, and says why
        logging.getLogger(__name__).warning("%s does not describe itself: %s", device, error)
        return CardFacts(device.index, str(device), 0, device.type)


def _gpu(card: CardFacts, measured: GpuRates) -> Gpu:
    return Gpu(
        card.name, card.index, card.total, _vram_free(card.index), measured.bytes_s, measured.flops, measured.link,
        measured.rates, measured.cpu_under_copy, measured.link_under_cpu, measured.launch_s,
        measured.layer_s, kind=card.kind, unified=card.unified, graphs=measured.graphs,
        lists_weights=measured.lists_weights, replay_saves=measured.replay_saves, in_place=measured.in_place,
        cpu_beside=measured.cpu_beside, gpu_beside=measured.gpu_beside, abilities=measured.abilities,
    )  # fmt: skip


def _simulated(simulation: Simulation, measured: GpuRates) -> Gpu:
    """Return the simulated GPU: as fast as the cores that emulate it, shared or its own, or with a given rate."""
    own = simulation.gpu
    return Gpu(
        "Simulated GPU", 0, simulation.vram, simulation.vram, own or measured.bytes_s, 1e14 if own else measured.flops,
        measured.link, () if own else measured.rates, measured.cpu_under_copy, measured.link_under_cpu,
        measured.launch_s, measured.layer_s, simulated=True, shares_cores=own is None and not simulation.cores,
        kind="simulated", requested=True,
    )  # fmt: skip


def _vram_free(index: int) -> int:
    """Return the free bytes of a GPU; 0 if it does not answer, so that nothing is placed there."""
    from core.accelerators.factory import open_accelerator

    try:
        accelerator = open_accelerator(index)
        assert accelerator is not None
        return max(0, accelerator.memory().free)
    except HeteGenError:
        return 0


def driver_version() -> str:
    """Return the driver's version of the cards that the installed torch computes on, "" if there is none."""
    import torch

    return driver_for(torch.__version__, find_cards())


def kept_profiles(folder: Path) -> dict[str, MachineProfile]:
    """Return stored profiles by key; none if the file is missing or has another format."""
    try:
        data = json.loads((folder / PROFILE_FILE).read_text(encoding="utf-8"))
        return {key: _parsed(value) for key, value in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(folder: Path, profiles: dict[str, MachineProfile]) -> None:
    kept = dict(list(profiles.items())[-KEPT_PROFILES:])
    keep(folder / PROFILE_FILE, {key: asdict(profile) for key, profile in kept.items()})


def _parsed(data: dict[str, Any]) -> MachineProfile:
    from core.hardware.benchmark import CpuRates, GpuRates
    from core.kernels.autotune import KernelTable

    cpu = data["cpu"]
    table = KernelTable.from_json(cpu.pop("table"))
    rates = _rates(cpu.pop("rates"))
    gpus = tuple(one if isinstance(one, str) else GpuRates(**one | _records(one)) for one in data["gpus"])
    rest = {name: data[name] for name in ("disk_bytes_s", "busy", "tries")}
    return MachineProfile(CpuRates(**cpu, rates=rates, table=table), gpus, **rest)


def _records(gpu: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a GPU's rates that are records."""
    return {
        "rates": _rates(gpu["rates"]),
        "link": Link(**gpu["link"]),
        "abilities": parse_abilities(gpu["abilities"]),
    }


def _rates(data: list[dict[str, Any]]) -> tuple[KernelRate, ...]:
    return tuple(KernelRate(**{**one, "flops": tuple(one["flops"])}) for one in data)
