"""Numbers as people read them. Unknown values read "n/a", never 0.

Memory is counted as it is sold, 2^30 bytes to the GB; files, downloads and rates use 10^9.
"""

from __future__ import annotations

import re

from app.i18n.translator import number, tr
from core import units
from core.spec import Confidence, Prediction
from core.units import GIB

TYPICAL_DOWNLOAD_BYTES_S = 100e6 / 8
_PER_SECOND = re.compile(r"(?<=okens)/s\b")


def unknown() -> str:
    """Return the placeholder of an unknown figure, "n/a" in the user's language."""
    return tr("n/a")


def format_bytes(nbytes: float) -> str:
    """Format a file size: "14.2 GB", decimal as on disks."""
    return number(units.format_bytes(nbytes))


def format_memory(nbytes: float) -> str:
    """Format a memory size: "32.0 GB", binary as memory is sold."""
    return number(units.format_memory(nbytes))


def format_rate(bytes_per_s: float) -> str:
    """Format a data rate: "31.5 GB/s"."""
    return number(units.format_rate(bytes_per_s))


def rate(tokens_per_s: float | None) -> str:
    """Format tokens per second without the unit: "23.4", "112"."""
    if tokens_per_s is None:
        return unknown()
    return number(f"{tokens_per_s:.1f}" if tokens_per_s < 100 else f"{tokens_per_s:,.0f}")


def expected(speed: Prediction) -> str:
    """Format a range of predicted tokens per second, to two digits at most: "9.0–13", "460–1,400"."""
    low, high = (number(_two_digits(one)) for one in (speed.low, speed.high))
    return high if low == high else f"{low}–{high}"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{float(f'{value:.2g}'):,.0f}"


def seconds(value: float | None) -> str:
    """Format a duration: "0.34 s", "4.2 s", "1 min 20 s"."""
    if value is None:
        return unknown()
    if value < 1:
        return number(f"{value:.2f} s")
    if value < 60:
        return number(f"{value:.1f} s")
    return f"{int(value) // 60} min {int(value) % 60} s"


def of_memory(used: float, total: float) -> str:
    """Format a part of a memory: "12.4 of 32.0 GB"."""
    return tr("{} of {} GB").format(number(f"{used / GIB:.1f}"), number(f"{total / GIB:.1f}"))


def count(value: int | None) -> str:
    """Format a count: "1,234"."""
    return unknown() if value is None else number(f"{value:,}")


def percent(value: float | None) -> str:
    """Format a percentage, given as 0-100: "42 %"."""
    return unknown() if value is None else units.format_share(value / 100)


def whole_rates(text: str) -> str:
    """Return the text with rates, "tokens/s", that no line break can divide."""
    return _PER_SECOND.sub("/\u2060s", text)


def tokens(value: int) -> str:
    """Format a number of tokens: "1 token", "412 tokens"."""
    return tr("1 token") if value == 1 else tr("{} tokens").format(count(value))


def receipt(figures: dict[str, object]) -> str:
    """Format the line under a finished reply: "23.4 tokens/s, 0.6 s to first token, 412 tokens"."""
    speed, first, new = figures.get("tok_s"), figures.get("ttft_s"), figures.get("new_tokens")
    parts = []
    if isinstance(speed, int | float):
        parts.append(tr("{} tokens/s").format(rate(speed)))
    if isinstance(first, int | float):
        parts.append(tr("{} to first token").format(seconds(first)))
    if isinstance(new, int):
        parts.append(tokens(new))
    return ", ".join(parts)


def advice(name: str, nbytes: int, speed: Prediction) -> str:
    """Describe a suggested model: "Qwen3-4B, 8.0 GB (11 min at 100 Mbit/s), about 9.0–14 tokens/s"."""
    minutes = max(1, round(nbytes / TYPICAL_DOWNLOAD_BYTES_S / 60))
    return tr("{}, {} ({} min at 100 Mbit/s), about {} tokens/s").format(
        name, format_bytes(nbytes), minutes, expected(speed)
    )


def machine(cores: int | None, ram: int | None, cards: tuple[tuple[str, int | None], ...]) -> str:
    """Describe this computer in one sentence. `cards`: name and free memory of each graphics card."""
    parts = [tr("{}-core CPU").format(cores) if cores else "CPU", f"{ram / GIB:.0f} GB RAM" if ram else ""]
    parts += [
        tr("{} with {} GB free").format(name, number(f"{free / GIB:.1f}")) if free is not None else name
        for name, free in cards
    ]
    parts += [] if cards else [tr("no graphics card in use")]
    *first, last = (part for part in parts if part)
    return tr("This computer: {} and {}.").format(", ".join(first), last)


def confidence(word: Confidence) -> str:
    """Describe how well a predicted speed is founded."""
    match word:
        case "measured":
            return tr("measured on this computer")
        case "derived":
            return tr("worked out from what was measured here")
        case "guess":
            return tr("a rough guess")


def of(used: int, limit: int) -> str:
    """Format a part of a limit: "443 of 8,192"."""
    return tr("{} of {}").format(count(used), count(limit))
