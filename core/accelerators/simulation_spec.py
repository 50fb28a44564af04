"""What `--simulate-gpu` describes. No torch, so that a plan can be made without it."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import BadRequest
from core.sentence import sentence
from core.units import parse_rate, parse_size


@dataclass(frozen=True)
class Simulation:
    """Bytes of VRAM, bytes per second of the link in each direction, and of the device's own memory (None = it computes
    as fast as the cores do that stand in for it). `cores`: how many of the processor's are its own (0 = it borrows)."""

    vram: int
    link: float
    gpu: float | None = None
    cores: int = 0


KEYS, NEEDED = {"vram", "link", "gpu", "cores"}, {"vram", "link"}
MOST_CORES = 256


def parse_simulation(text: str) -> Simulation:
    """`vram=6GiB,link=12GB/s[,gpu=200GB/s][,cores=2]`. Raises BadRequest."""
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
