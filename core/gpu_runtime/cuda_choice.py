"""Which CUDA build of torch suits a card and its driver: facts as data, the decision a pure function."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import HeteGenError
from core.sentence import sentence


class NoRuntime(HeteGenError):
    """No CUDA build of torch can be had for this computer."""


@dataclass(frozen=True)
class NvidiaCard:
    """A graphics card by its name and CUDA compute capability, as (8, 9)."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Nvidia:
    """What the driver says: its version as "580.65.06", and the cards that answer."""

    driver: str
    cards: tuple[NvidiaCard, ...]

    @property
    def branch(self) -> int:
        """The driver's first number, which tells the CUDA versions that it can run."""
        first = self.driver.partition(".")[0]
        return int(first) if first.isdigit() else 0


@dataclass(frozen=True)
class CudaBuild:
    """A build that PyTorch publishes: its tag, the driver it needs, the compute capabilities it has kernels for."""

    tag: str
    branch: int
    least: tuple[int, int]
    most: tuple[int, int]

    @property
    def cuda(self) -> str:
        """ "13.0" for cu130."""
        return f"{self.tag[2:-1]}.{self.tag[-1]}"

    def suits(self, card: NvidiaCard) -> bool:
        return self.least <= card.capability <= self.most


BUILDS = (
    CudaBuild("cu130", 580, (7, 5), (12, 9)),
    CudaBuild("cu126", 528, (5, 0), (9, 0)),
)
"""Best first: those of torch 2.13, by PyTorch's own table of releases and NVIDIA's of minor version compatibility."""


def choose(machine: Nvidia) -> CudaBuild:
    """The best build for the first card that any build has kernels for. Raises NoRuntime with the reason."""
    if not machine.cards:
        raise NoRuntime("No NVIDIA card answers.")
    suited = [build for build in BUILDS if any(build.suits(card) for card in machine.cards)]
    if not suited:
        major, minor = machine.cards[0].capability
        raise NoRuntime(
            sentence("The {} is not supported by PyTorch.", machine.cards[0].name),
            sentence("Its compute capability is {}.{}.", major, minor),
        )
    for build in suited:
        if machine.branch >= build.branch:
            return build
    raise NoRuntime(
        sentence("The driver {} of the {} is too old.", machine.driver, machine.cards[0].name),
        sentence("Version {} or newer is needed.", min(build.branch for build in suited)),
        "Install a newer driver from NVIDIA, then start again.",
    )
