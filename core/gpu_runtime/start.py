"""What becomes of the runtime at a start: used, or not and why. To be settled before torch is first imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from core.gpu_runtime.cards import find_nvidia
from core.gpu_runtime.cuda_choice import Nvidia
from core.gpu_runtime.store import Runtime, TrialResult
from core.gpu_runtime.trial import attempt

Attempt = Callable[[Path, str], TrialResult]


@dataclass(frozen=True)
class Standing:
    """The installed runtime at this start: `version` "" = none; `why` is a sentence when it is not used; `untried`:
    nobody knows yet whether it works with the driver that is there now."""

    version: str = ""
    used: bool = False
    device: str = ""
    why: str = ""
    untried: bool = False


def own_torch() -> str:
    """The public version of the torch that the program came with, as "2.13.0"; "" without torch."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return ""


def computes_on_cards() -> bool:
    """Whether the torch that an import would find now is a build for CUDA. Nothing is imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    libraries = Path(spec.origin).parent / "lib"
    return any((libraries / name).exists() for name in ("libtorch_cuda.so", "torch_cuda.dll"))


def stand(runtime: Runtime, torch: str, machine: Nvidia | None, result: TrialResult | None) -> Standing:
    """The decision, from what is known; without a verdict the runtime is not used."""
    found = runtime.installed()
    if not found:
        return Standing()
    if _public(found) != torch:
        return Standing(found, why=f"The GPU runtime is for torch {_public(found)}, and this program has {torch}.")
    if machine is None or not machine.cards:
        return Standing(found, why="No NVIDIA card answers.")
    if result is None or not _is_of(result, found, machine):
        return Standing(found, why="The GPU runtime was not tried with this driver.")
    return Standing(found, result.works, result.device, result.why)


def activate(
    runtime: Runtime, find: Callable[[], Nvidia | None] = find_nvidia, attempt: Attempt | None = attempt
) -> Standing:
    """Put the runtime before the program's own torch, if it is to be used. Never raises for what is on the disk.

    `attempt` may take minutes; without one, a runtime that has to be tried is not used by this start.
    """
    try:
        if runtime.is_unwanted():
            runtime.remove_unless_used()
            return Standing()
        return _activate(runtime, find, attempt)
    except OSError as error:
        return Standing(runtime.installed(), why=f"The GPU runtime's folder cannot be used: {error.strerror or error}.")


def _activate(runtime: Runtime, find: Callable[[], Nvidia | None], attempt: Attempt | None) -> Standing:
    found = runtime.installed()
    if not found:
        return Standing()
    torch, machine, result = own_torch(), find(), runtime.result()
    if machine and machine.cards and _public(found) == torch and not (result and _is_of(result, found, machine)):
        if attempt is None:
            return replace(stand(runtime, torch, machine, result), untried=True)
        result = attempt(runtime.folder(found), machine.driver)
        runtime.keep_result(result)
    standing = stand(runtime, torch, machine, result)
    if standing.used:
        runtime.hold()
        sys.path.insert(0, str(runtime.folder(found)))
    return standing


def _public(found: str) -> str:
    return found.partition("+")[0]


def _is_of(result: TrialResult, found: str, machine: Nvidia) -> bool:
    """Whether a verdict is on this build with this driver."""
    return (result.version, result.driver) == (found, machine.driver)
