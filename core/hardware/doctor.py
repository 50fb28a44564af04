"""The report of `doctor`: the machine as it is and as measured, and what could be improved and how."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from core.graphics.builds import NoRuntime, choose
from core.graphics.card import GraphicsCard
from core.hardware.cpu_info import on_battery
from core.hardware.untried import UNTRIED
from core.spec import BUCKET_NAMES, Cpu, Gpu, Hardware
from core.units import GIB, format_bytes

LITTLE_RAM = 4 * GIB
FULL_CARD = 0.5
# Rates below these are slower than any healthy link or any working use of pinned memory.
SLOW_LINK, USELESS_LINK = 6e9, 2e9


@dataclass(frozen=True)
class Finding:
    """A limitation of this machine, and what the user can do about it (one sentence each)."""

    what: str
    how: str


@dataclass(frozen=True)
class Software:
    """Installed software that determines which hardware can be used."""

    system: str
    python: str
    torch: str
    cuda: str
    driver: str
    compiled_kernels: tuple[str, ...]
    cards: tuple[GraphicsCard, ...] = ()


def software() -> Software:
    """Return the versions of all computing software, and what the native library supports here."""
    import torch

    from core.graphics.find import find_cards
    from core.kernels.native_abi import instruction_sets

    cards = find_cards()
    driver = next((card.driver for card in cards if card.driver), "")
    cuda = torch.version.cuda or torch.version.hip or torch.version.xpu or ""
    return Software(
        platform.platform(), platform.python_version(), torch.__version__, cuda, driver, instruction_sets(), cards,
    )  # fmt: skip


def describe_machine(hardware: Hardware, installed: Software) -> dict[str, Any]:
    """Return one JSON object: sizes in bytes, rates in bytes per second, times in seconds."""
    return {
        "system": installed.system,
        "python": installed.python,
        "torch": installed.torch,
        "cuda": installed.cuda,
        "driver": installed.driver,
        "compiled_kernels": list(installed.compiled_kernels),
        **_cpu(hardware.cpu),
        "gpus": [_gpu(gpu) for gpu in hardware.gpus],
        "cards": [asdict(card) for card in installed.cards],
        "disk_bytes_s": round(hardware.disk_bytes_s),
        "measured": hardware.measured,
        "untried": list(UNTRIED),
        "findings": [{"what": found.what, "how": found.how} for found in findings(hardware, installed)],
    }


def findings(hardware: Hardware, installed: Software) -> list[Finding]:
    """Return what to fix, the most important first."""
    found = list(_about_gpus(hardware, installed))
    return [*found, *_about_cpu(hardware, installed)]


def _about_gpus(hardware: Hardware, installed: Software) -> Iterator[Finding]:
    for words in hardware.unusable:
        yield Finding(f"A graphics card is not used. {words}", "Mend that, then run doctor again.")
    if installed.cards and not hardware.gpus and not hardware.unusable:
        yield _about_unused(installed)
    for gpu in hardware.gpus:
        yield from _about_gpu(gpu)


def _about_unused(installed: Software) -> Finding:
    """Return what prevents the use of a usable GPU, or of the first one."""
    try:
        _, card = choose(installed.cards)
    except NoRuntime as error:
        return Finding(f"{error.what} {error.why}".strip(), error.next_step or "The processor does all the work.")
    reason = "is made for the processor only" if not installed.cuda else "cannot use it"
    return Finding(
        f"There is an {card.name} (driver {card.driver}), but the installed torch ({installed.torch}) {reason}.",
        "Open Graphics card… in the window's menu, which fetches the torch for it and says the size before.",
    )


def _about_gpu(gpu: Gpu) -> Iterator[Finding]:
    if gpu.simulated:
        return
    if gpu.vram_free < FULL_CARD * gpu.vram_total:
        taken = format_bytes(gpu.vram_total - gpu.vram_free)
        yield Finding(
            f"Other programs hold {taken} of the {gpu.name}'s memory.", "Close games, browsers and other models."
        )
    if gpu.link.h2d_pinned < USELESS_LINK:
        yield Finding(
            f"The link to the {gpu.name} brings only {format_bytes(gpu.link.h2d_pinned)} per second.",
            "See that it is in the fastest slot and not on a riser, hub or external box.",
        )
    elif gpu.link.h2d_pinned < SLOW_LINK:
        yield Finding(
            f"The link to the {gpu.name} brings {format_bytes(gpu.link.h2d_pinned)} per second, which is little.",
            "See that it is in a slot with 16 lanes.",
        )
    for one in gpu.abilities.attempts:
        if one.why:
            yield Finding(f"The {gpu.name} is used without {one.name}. {one.why}", "A newer driver may mend that.")
    if not gpu.link.lockable:
        yield Finding(
            f"The system lets too little memory be locked for fast copies to the {gpu.name}.",
            "Allow more locked memory (ulimit -l, or the container's limit), then run doctor again.",
        )
    elif gpu.link.h2d_pinned < 1.1 * gpu.link.h2d_pageable and gpu.link.h2d_pinned < 2 * SLOW_LINK:
        yield Finding(
            "Locked memory is no faster than ordinary memory.",
            "Under Windows Subsystem for Linux or in a container, allow more locked memory or run outside of it.",
        )


def _about_cpu(hardware: Hardware, installed: Software) -> Iterator[Finding]:
    cpu = hardware.cpu
    if on_battery():
        yield Finding("The computer runs on its battery and is slowed down.", "Plug in the charger.")
    if cpu.ram_free < min(LITTLE_RAM, cpu.ram_total // 3):
        yield Finding(
            f"Only {format_bytes(cpu.ram_free)} of {format_bytes(cpu.ram_total)} of memory are free.",
            "Close programs that you do not need.",
        )
    if not installed.compiled_kernels:
        yield Finding(
            "The compiled kernels are missing, so the processor computes at a fraction of its speed.",
            "Install HeteGen again from a release, or with a C compiler present.",
        )
    if not hardware.measured:
        yield Finding(
            "This machine was never measured in a quiet moment, so speeds are guesses.",
            "Run doctor when it has little else to do.",
        )
    if platform.machine().lower() in ("x86_64", "amd64") and "avx2" not in cpu.isa:
        yield Finding("The processor has no AVX2.", "Use small models: large ones are slow on it.")


def _cpu(cpu: Cpu) -> dict[str, Any]:
    return {
        "cpu": cpu.name,
        "isa": list(cpu.isa),
        "physical_cores": cpu.physical_cores,
        "logical_cores": cpu.logical_cores,
        "threads": cpu.threads,
        "ram_total": cpu.ram_total,
        "ram_free": cpu.ram_free,
        "read_bytes_s": round(cpu.read_bytes_s),
        "kernels": [
            {
                "storage": rate.storage,
                "bytes_s": round(rate.bytes_s),
                "flops": dict(zip(BUCKET_NAMES, map(round, rate.flops), strict=True)),
            }
            for rate in cpu.rates
        ],
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    link = gpu.link
    return {
        "name": gpu.name,
        "index": gpu.index,
        "simulated": gpu.simulated,
        "vram_total": gpu.vram_total,
        "vram_free": gpu.vram_free,
        "bytes_s": round(gpu.bytes_s),
        "flops": round(gpu.flops),
        "link": {
            "h2d_pinned": round(link.h2d_pinned),
            "h2d_pageable": round(link.h2d_pageable),
            "d2h_pinned": round(link.d2h_pinned),
            "d2h_pageable": round(link.d2h_pageable),
            "staged": round(link.staged),
            "sync_s": link.sync_s,
        },
        "cpu_under_copy": round(gpu.cpu_under_copy, 3),
        "link_under_cpu": round(gpu.link_under_cpu, 3),
        "tried": [asdict(one) for one in gpu.abilities.attempts],
        "unified": gpu.unified,
        "in_place": gpu.in_place,
        "cpu_beside": round(gpu.cpu_beside, 3),
        "gpu_beside": round(gpu.gpu_beside, 3),
    }
