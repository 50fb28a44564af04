"""The builds of torch for graphics cards, as a table, and the choice of the one that suits a card and its driver."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass

from core.errors import HeteGenError
from core.graphics.card import GraphicsCard, Maker
from core.graphics.intel import FAMILIES
from core.sentence import sentence


class NoRuntime(HeteGenError):
    """No published build of torch can compute on a card of this computer."""


@dataclass(frozen=True)
class Capabilities:
    """A range of NVIDIA compute capabilities (inclusive), each written as "8.9"."""

    least: tuple[int, int]
    most: tuple[int, int]

    def __contains__(self, capability: object) -> bool:
        return self.least <= numbers(str(capability))[:2] <= self.most


@dataclass(frozen=True)
class Build:
    """A build of torch that PyTorch publishes.

    `tag` is its local version and the name of its index ("cu130"); `title` is its name in the window. `driver` is the
    oldest driver that runs it, () for any. `architectures` are those it has kernels for. `followed` are the prefixes of
    requirements that are fetched with it: others are installed already, and triton is never used. `unpacked` is the
    ratio of bytes on disk to bytes of wheels: measured for CUDA, measured on some wheels for XPU, assumed for ROCm.
    """

    tag: str
    title: str
    maker: Maker
    architectures: Container[str]
    driver: tuple[int, ...] = ()
    systems: tuple[str, ...] = ("linux", "win32")
    followed: tuple[str, ...] = ()
    unpacked: float = 1.6


BUILDS = (
    Build("cu130", "CUDA 13.0", "NVIDIA", Capabilities((7, 5), (12, 9)), (580,), followed=("nvidia-", "cuda-toolkit")),
    Build("cu126", "CUDA 12.6", "NVIDIA", Capabilities((5, 0), (9, 0)), (528,), followed=("nvidia-", "cuda-toolkit")),
    Build(
        "rocm7.2", "ROCm 7.2", "AMD",
        frozenset({
            "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150",
            "gfx1151", "gfx1200", "gfx1201",
        }),
        systems=("linux",), unpacked=3,
    ),
    Build(
        "xpu", "Intel XPU", "Intel", frozenset(name for name, _ in FAMILIES),
        followed=("intel-", "onemkl-", "oneccl", "impi-rt", "dpcpp-", "mkl", "tbb", "tcmlib", "umf", "pyzes"),
        unpacked=3.5,
    ),
)  # fmt: skip
"""The builds of torch 2.13, best first for each maker, from PyTorch's build scripts and NVIDIA's table of minor version
compatibility."""
OLDEST_ON_WINDOWS = {"Intel": (31, 0, 101, 5122)}
"""The oldest drivers on Windows, for makers whose builds name none."""


def choose(cards: Sequence[GraphicsCard], system: str = sys.platform) -> tuple[Build, GraphicsCard]:
    """Return the best build for the first card that any build suits. Raises NoRuntime with the first card's reason."""
    reasons = []
    for card in cards:
        try:
            return _build_for(card, system), card
        except NoRuntime as error:
            reasons.append(error)
    raise reasons[0] if reasons else NoRuntime("No graphics card answers.")


def maker_of(version: str) -> Maker | None:
    """Return the maker that a version of torch ("2.13.0+cu130") is built for; None for a CPU build."""
    tag = version.partition("+")[2]
    starts: dict[str, Maker] = {"cu": "NVIDIA", "rocm": "AMD", "xpu": "Intel"}
    return next((maker for start, maker in starts.items() if tag.startswith(start) and tag != "cpu"), None)


def driver_for(version: str, cards: Sequence[GraphicsCard]) -> str:
    """Return the driver of the cards that a version of torch is built for; "" if no such card has one."""
    return next((card.driver for card in cards if card.maker == maker_of(version) and card.driver), "")


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (580, 65, 6) for "580.65.06", () if there are none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def _build_for(card: GraphicsCard, system: str) -> Build:
    own = [build for build in BUILDS if build.maker == card.maker and system in build.systems]
    if not own:
        raise _not_on_this_system(card)
    if not card.driver:
        raise _no_driver(card, system)
    suited = [build for build in own if card.architecture in build.architectures]
    if not suited:
        raise _unsupported(card)
    if not card.allowed:
        raise _not_allowed(card)
    for build in suited:
        if numbers(card.driver) >= _oldest(build, system):
            return build
    raise _too_old(card, min(_oldest(build, system) for build in suited))


def _oldest(build: Build, system: str) -> tuple[int, ...]:
    return build.driver or (OLDEST_ON_WINDOWS.get(build.maker, ()) if system == "win32" else ())


def _not_on_this_system(card: GraphicsCard) -> NoRuntime:
    return NoRuntime(
        sentence("The {} cannot be used on this system.", card.name),
        sentence("PyTorch publishes builds for {} cards for other systems only.", card.maker),
        "Under Linux it can be used.",
    )


def _no_driver(card: GraphicsCard, system: str) -> NoRuntime:
    what = sentence("The {} has no driver for computing.", card.name)
    if card.maker == "Intel" and system == "linux":
        step = sentence("Install Intel's driver for computing (in Debian: libze-intel-gpu1), then start again.")
    elif card.maker == "AMD":
        step = sentence("Install a newer kernel or AMD's own driver (amdgpu), then start again.")
    else:
        step = sentence("Install the driver from {}, then start again.", card.maker)
    return NoRuntime(what, "", step)


def _unsupported(card: GraphicsCard) -> NoRuntime:
    if card.maker == "NVIDIA":
        why = sentence("Its compute capability is {}.", card.architecture)
    elif card.architecture:
        why = sentence("It is of the kind {}.", card.architecture)
    else:
        why = sentence("It is of an older kind.")
    return NoRuntime(sentence("The {} is not supported by PyTorch.", card.name), why)


def _not_allowed(card: GraphicsCard) -> NoRuntime:
    return NoRuntime(
        sentence("You may not use the {}.", card.name),
        "The system lets only members of some groups open it.",
        "Add yourself to the groups render and video, then log in again.",
    )


def _too_old(card: GraphicsCard, oldest: tuple[int, ...]) -> NoRuntime:
    return NoRuntime(
        sentence("The driver {} of the {} is too old.", card.driver, card.name),
        sentence("Version {} or newer is needed.", ".".join(map(str, oldest))),
        sentence("Install a newer driver from {}, then start again.", card.maker),
    )
