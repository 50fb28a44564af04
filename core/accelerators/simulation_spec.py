"""The description of a simulated card (`--simulate-gpu`). Free of torch, so that plans can be made without it."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import BadRequest
from core.sentence import sentence
from core.units import parse_rate, parse_size


@dataclass(frozen=True)
class Simulation:
    """Bytes of VRAM, and bytes per second of the link (in each direction) and of the device's memory.

    `gpu` None = as fast as the cores that compute for it. `cores`: number of CPU cores of its own (0 = the caller's).
    """

    vram: int
    link: float
    gpu: float | None = None
    cores: int = 0


KEYS, NEEDED = {"vram", "link", "gpu", "cores"}, {"vram", "link"}
MOST_CORES = 256


def parse_simulation(text: str) -> Simulation:
    """Parse `vram=6GiB,link=12GB/s[,gpu=200GB/s][,cores=2]`. Raises BadRequest."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    parts = {key: value for key, equals, value in pairs if equals}
    if not NEEDED <= set(parts) <= KEYS or len(parts) != len(pairs):
        raise _not_understood(text)
    rate = parse_rate(parts["gpu"]) if "gpu" in parts else None
    return Simulation(parse_size(parts["vram"]), parse_rate(parts["link"]), rate, _cores(parts.get("cores", "0"), text))


def _cores(number: str, text: str) -> int:
    if not number.isascii() or not number.isdigit() or int(number) > MOST_CORES:
        raise _not_understood(text)
    return int(number)


def _not_understood(text: str) -> BadRequest:
    return BadRequest(
        sentence("{} does not describe a graphics card.", f"{text!r}"),
        "",
        "Write for example vram=6GiB,link=12GB/s,gpu=200GB/s.",
    )
