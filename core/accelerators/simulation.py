"""What `--simulate-gpu` describes. No torch, so that a plan can be made without it."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import BadRequest
from core.sizes import parse_rate, parse_size


@dataclass(frozen=True)
class Simulation:
    """Bytes of VRAM, bytes per second of the link in each direction, and of the device's own memory (None = it computes
    as fast as the cores do that stand in for it)."""

    vram: int
    link: float
    gpu: float | None = None


def parse_simulation(text: str) -> Simulation:
    """`vram=6GiB,link=12GB/s[,gpu=200GB/s]`. Raises BadRequest."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    parts = {key: value for key, equals, value in pairs if equals}
    if not {"vram", "link"} <= set(parts) <= {"vram", "link", "gpu"} or len(parts) != len(pairs):
        raise BadRequest(
            f"{text!r} does not describe a graphics card.", "", "Write for example vram=6GiB,link=12GB/s,gpu=200GB/s."
        )
    rate = parse_rate(parts["gpu"]) if "gpu" in parts else None
    return Simulation(parse_size(parts["vram"]), parse_rate(parts["link"]), rate)
