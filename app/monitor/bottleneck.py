"""Explains in one sentence what limits the speed on this machine now, and what would help. Pure, without Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from app.monitor.live_records import Outlook
from app.monitor.telemetry import Sample
from app.monitor.telemetry_nvml import GpuSample
from core.sentence import sentence
from core.units import format_bytes, format_memory, format_rate

Bound = Literal["disk", "heat", "power", "battery", "programs", "ram", "link", "gpu", "steps"]

PAGING_BYTES_S = 50e6
"""A higher disk rate during a reply, with memory nearly full, means paging."""
LITTLE_RAM = 0.06
BUSY_OTHERS_PERCENT = 20.0
MUCH_VRAM = 0.08
BEHIND = 0.8
"""A measured speed below this share of the predicted one needs an explanation other than the plan."""


@dataclass(frozen=True)
class Situation:
    """What is known during a reply. `tok_s`: the measured speed, None = not measured yet."""

    sample: Sample
    outlook: Outlook
    tok_s: float | None = None

    @property
    def behind(self) -> bool:
        """Whether the reply is clearly slower than predicted."""
        return self.tok_s is not None and self.tok_s < BEHIND * self.outlook.decode_tok_s.likely


@dataclass(frozen=True)
class Explanation:
    """An explanation. `sentence`: what limits the speed; `help`: what would change that."""

    bound: Bound
    sentence: str
    help: str


def explain(situation: Situation) -> Explanation:
    """Return the most telling cause: first what is wrong now, then what limits even an undisturbed machine."""
    for cause in CAUSES:
        if found := cause(situation):
            return found
    return _engine(situation)


def _disk(situation: Situation) -> Explanation | None:
    sample, times = situation.sample, situation.outlook.times
    if times.disk > 0.5 * times.total:
        return Explanation(
            "disk",
            "Bound by the disk: the model is larger than the free memory, so part of it is read anew for every token.",
            "A smaller format or a smaller model would be many times faster.",
        )
    rate, total, available = sample.disk_read_bytes_s, sample.ram_total, sample.ram_available
    if rate is None or total is None or available is None:
        return None
    if rate > PAGING_BYTES_S and available < LITTLE_RAM * total:
        return Explanation(
            "disk",
            sentence("Bound by the disk: memory is full, and weights are read again at {}.", format_rate(rate)),
            "Close other programs, or choose a smaller format.",
        )
    return None


def _heat(situation: Situation) -> Explanation | None:
    card = next((card for card in situation.sample.gpus if card.slowed_by_heat), None)
    if card is None or situation.outlook.bytes_per_token.gpu == 0:
        return None
    degrees = "" if card.temperature_c is None else sentence(" ({} °C)", f"{card.temperature_c:.0f}")
    return Explanation(
        "heat",
        sentence("Bound by heat: the graphics card slows itself down{}.", degrees),
        "Give it more air, or let it rest.",
    )


def _battery(situation: Situation) -> Explanation | None:
    if not situation.sample.on_battery:
        return None
    return Explanation(
        "battery", "On battery: the system keeps processor and graphics card slow.", "Plug in the power supply."
    )


def _programs(situation: Situation) -> Explanation | None:
    others = situation.sample.others_cpu_percent
    if others is None or others < BUSY_OTHERS_PERCENT or not situation.behind:
        return None
    if situation.outlook.bytes_per_token.cpu == 0:
        return None
    return Explanation(
        "programs",
        sentence("Other programs use {} % of the processor.", f"{others:.0f}"),
        "Close them, and the reply becomes faster.",
    )


def _power(situation: Situation) -> Explanation | None:
    card = next((card for card in situation.sample.gpus if card.slowed_by_power), None)
    if card is None or not situation.behind:
        return None
    limit = "" if card.power_limit_w is None else sentence(" of {} W", f"{card.power_limit_w:.0f}")
    return Explanation(
        "power",
        sentence("Bound by power: the graphics card runs at its limit{}.", limit),
        "Raise the limit in the driver's settings if the card allows it.",
    )


def _vram(situation: Situation) -> Explanation | None:
    """Check whether other programs hold the card's memory while weights stay in RAM."""
    if situation.outlook.bytes_per_token.cpu + situation.outlook.bytes_per_token.link == 0:
        return None
    for card in situation.sample.gpus:
        held = card.vram_others
        if held is not None and card.vram_total and held > MUCH_VRAM * card.vram_total and card.others:
            return Explanation(
                "programs",
                sentence("Other programs hold {} of the graphics memory{}.", format_memory(held), _biggest(card)),
                "Close them, and more of the model moves there by itself.",
            )
    return None


def _biggest(card: GpuSample) -> str:
    name, size = card.others[0]
    return sentence(", {} most of it", name) if len(card.others) > 1 and size > 0 else f" ({name})"


CAUSES: tuple[Callable[[Situation], Explanation | None], ...] = (_disk, _heat, _battery, _programs, _power, _vram)


def _engine(situation: Situation) -> Explanation:
    """Return the engine that takes most of a token's time on an undisturbed machine."""
    outlook = situation.outlook
    times, read = outlook.times, outlook.bytes_per_token
    small_steps = times.overhead + times.attention
    longest = max(times.cpu, times.link, times.gpu, small_steps)
    if longest == times.link and times.link > 0:
        return Explanation(
            "link",
            sentence("Bound by the link to the graphics card: {} travel for every token.", format_bytes(read.link)),
            "A smaller format, or more free graphics memory, would help most.",
        )
    if longest == times.cpu and times.cpu > 0:
        return Explanation(
            "ram",
            sentence("Bound by memory bandwidth: the processor reads {} for every token.", format_bytes(read.cpu)),
            _smaller(outlook),
        )
    if longest == times.gpu and times.gpu > 0:
        return Explanation(
            "gpu",
            sentence("Bound by the graphics card's own memory: it reads {} for every token.", format_bytes(read.gpu)),
            "This is as fast as the card can be with this model; a smaller format reads less.",
        )
    return Explanation(
        "steps",
        "Bound by the many small steps of each token, not by memory.",
        "A smaller context keeps attention short.",
    )


def _smaller(outlook: Outlook) -> str:
    if outlook.format != "int4":
        return "A smaller format would be faster almost in proportion; faster memory modules help too."
    return "A smaller model would help most; so would faster memory modules or a graphics card."
