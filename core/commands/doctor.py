"""`doctor`: what this machine has, how fast it was measured to be, what is used of it, and what to fix."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from core.commands.arguments import add_json, add_machine_options
from core.spec import BUCKET_NAMES
from core.units import format_bytes, format_rate, format_share

if TYPE_CHECKING:  # imports torch, which takes seconds
    from core.kernels.autotune import KernelTable


def add(subparsers: Any) -> None:
    """Add the command `doctor` and its options."""
    parser = subparsers.add_parser("doctor", help="what this machine has, and what to fix")
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the machine's report line by line and return it as a JSON object. Raises BadRequest."""
    from core.hardware.doctor import describe_machine, software
    from core.hardware.machine import open_machine
    from core.paths import cache_folder

    machine = open_machine(cache_folder(), args.simulate_gpu, args.threads)
    report = describe_machine(machine.now(), software()) | {
        "chosen_kernels": chosen_kernels(machine.kernels), "gpu_runtime": gpu_runtime(),
    }  # fmt: skip
    for line in _lines(report):
        print(line)
    return report


def chosen_kernels(table: KernelTable) -> dict[str, dict[str, str]]:
    """Return the fastest kernel by storage and input rows, for the largest shape that was timed."""
    largest = {timing.storage: (timing.rows, timing.columns) for timing in table.timings}
    return {
        storage: dict(zip(BUCKET_NAMES, table.names(storage, *shape), strict=True))
        for storage, shape in largest.items()
    }


def gpu_runtime() -> dict[str, str | bool]:
    """Return the downloaded GPU build of torch: its version, the GPU it computes on, or why it is not used."""
    from core.gpu_runtime.start import own_torch, stand
    from core.gpu_runtime.store import Runtime
    from core.graphics.find import find_cards
    from core.paths import gpu_runtime as folder

    runtime = Runtime(folder())
    standing = stand(runtime, own_torch(), find_cards(), runtime.result())
    return {"version": standing.version, "used": standing.used, "device": standing.device, "why": standing.why}


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"System    {report['system']}, Python {report['python']}, torch {report['torch']}"
    yield f"CPU       {report['cpu']}, {report['physical_cores']} cores, {report['threads']} threads used"
    yield f"          {' '.join(report['isa'])}"
    yield f"Memory    {format_bytes(report['ram_free'])} of {format_bytes(report['ram_total'])} free"
    rates = ", ".join(f"{kernel['storage']} {format_rate(kernel['bytes_s'])}" for kernel in report["kernels"])
    yield f"          reads {format_rate(report['read_bytes_s'])}; with weights {rates}"
    yield f"Disk      reads {format_rate(report['disk_bytes_s'])}"
    for gpu in report["gpus"]:
        yield from _gpu_lines(gpu)
    yield from (f"Card      {_card_line(card)}" for card in report["cards"])
    if (runtime := report["gpu_runtime"])["version"]:
        yield f"Runtime   {runtime['version']}: {runtime['device'] or runtime['why']}"
    for storage, names in report["chosen_kernels"].items():
        yield f"Kernels   {storage}: " + ", ".join(f"{rows} rows {name}" for rows, name in names.items())
    yield from (f"Untried   {said}" for said in report["untried"] if report["gpus"] or report["cards"])
    for found in report["findings"]:
        yield f"To fix    {found['what']} {found['how']}"


def _card_line(card: dict[str, Any]) -> str:
    driver = f"driver {card['driver']}" if card["driver"] else "no driver for computing"
    return ", ".join(filter(None, (card["name"], card["architecture"], driver)))


def _gpu_lines(gpu: dict[str, Any]) -> Iterator[str]:
    yield f"GPU {gpu['index']}     {gpu['name']}{' (simulated)' if gpu['simulated'] else ''}"
    yield f"          {format_bytes(gpu['vram_free'])} of {format_bytes(gpu['vram_total'])} free"
    link = gpu["link"]
    yield (
        f"          link to it {format_rate(link['h2d_pinned'])} pinned, {format_rate(link['h2d_pageable'])} pageable;"
        f" back {format_rate(link['d2h_pinned'])} and {format_rate(link['d2h_pageable'])}"
    )
    yield (
        f"          streaming {format_rate(link['staged'])}; while both run the CPU keeps"
        f" {format_share(gpu['cpu_under_copy'])} and the link {format_share(gpu['link_under_cpu'])}"
    )
    for works, words in ((True, "tried and used"), (False, "tried, but not used")):
        if names := [one["name"] for one in gpu["tried"] if one["works"] is works]:
            yield f"          {words}: {', '.join(names)}"
    if gpu["unified"]:
        weights = "reads weights in place" if gpu["in_place"] else "has copies of its weights"
        yield (
            f"          shares the computer's memory and {weights}; while both compute the CPU keeps"
            f" {format_share(gpu['cpu_beside'])} and the GPU {format_share(gpu['gpu_beside'])}"
        )
