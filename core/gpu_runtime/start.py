"""Decides at startup whether the installed runtime is used. Must be settled before torch is first imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from core.gpu_runtime.store import Runtime, TrialResult
from core.gpu_runtime.trial import attempt
from core.graphics.builds import driver_for, maker_of
from core.graphics.card import GraphicsCard, Maker
from core.graphics.find import find_cards
from core.sentence import sentence
from core.startup.torch_folder import packages_of, use_packages

Attempt = Callable[[Path, str], TrialResult]
Find = Callable[[], Sequence[GraphicsCard]]
LIBRARIES: dict[str, Maker] = {"torch_cuda": "NVIDIA", "torch_hip": "AMD", "torch_xpu": "Intel"}
"""The libraries that identify GPU builds of torch."""


@dataclass(frozen=True)
class Standing:
    """The state of the installed runtime at this start.

    `version`: "" = none installed; `why`: a sentence if it is not used; `untried`: it is not known yet whether it works
    with the current driver.
    """

    version: str = ""
    used: bool = False
    device: str = ""
    why: str = ""
    untried: bool = False


def own_torch() -> str:
    """Return the public version of the torch that the program came with, as "2.13.0"; "" without torch."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return ""


def maker_of_torch() -> Maker | None:
    """Return the maker of the cards that the importable torch supports, without importing it; None for a CPU build."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    for name, maker in LIBRARIES.items():
        if (folder / f"lib{name}.so").exists() or (folder / f"{name}.dll").exists():
            return maker
    return None


def stand(runtime: Runtime, torch: str, cards: Sequence[GraphicsCard], result: TrialResult | None) -> Standing:
    """Decide from what is known; without the result of a trial the runtime is not used."""
    found = runtime.installed()
    if not found:
        return Standing()
    if _public(found) != torch:
        why = sentence("The GPU runtime is for torch {}, and this program has {}.", _public(found), torch)
        return Standing(found, why=why)
    driver = driver_for(found, cards)
    if not driver:
        return Standing(found, why=sentence("No {} card answers.", maker_of(found) or ""))
    if result is None or not _is_of(result, found, driver):
        return Standing(found, why=sentence("The GPU runtime was not tried with this driver."))
    return Standing(found, result.works, result.device, result.why)


def activate(runtime: Runtime, find: Find = find_cards, attempt: Attempt | None = attempt) -> Standing:
    """Put the runtime before the program's own torch if it is to be used. Never raises for the state of the disk.

    `attempt` may take minutes. Without it, a runtime that needs a trial is not used at this start.
    """
    try:
        if runtime.is_unwanted():
            runtime.remove_unless_used()
            return Standing()
        return _activate(runtime, find, attempt)
    except OSError as error:
        why = sentence("The GPU runtime's folder cannot be used: {}.", error.strerror or error)
        return Standing(runtime.installed(), why=why)


def _activate(runtime: Runtime, find: Find, attempt: Attempt | None) -> Standing:
    found = runtime.installed()
    if not found:
        return Standing()
    torch, cards, result = own_torch(), find(), runtime.result()
    driver = driver_for(found, cards)
    if driver and _public(found) == torch and not (result and _is_of(result, found, driver)):
        if attempt is None:
            return replace(stand(runtime, torch, cards, result), untried=True)
        result = attempt(runtime.folder(found), driver)
        runtime.keep_result(result)
    standing = stand(runtime, torch, cards, result)
    if standing.used:
        runtime.hold()
        use_packages(packages_of(runtime.folder(found)))
    return standing


def _public(found: str) -> str:
    return found.partition("+")[0]


def _is_of(result: TrialResult, found: str, driver: str) -> bool:
    """Return whether a result is of this build with this driver."""
    return (result.version, result.driver) == (found, driver)
