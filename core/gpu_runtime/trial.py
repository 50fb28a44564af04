"""Tries the runtime in a separate process, so that a crash does not end the program that asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from core.gpu_runtime.store import TrialResult
from core.own_process import command, ends, source_folder, without_crash_windows, without_window
from core.sentence import pack, sentence, unpack
from core.startup.torch_folder import packages_of, use_packages

ARGUMENT = "--try-gpu-runtime"
"""The argument that makes a bundle's own executable, which has no Python beside it, call `main`."""
LIMIT_S = 180
SIDE = 256


def attempt(folder: Path, driver: str) -> TrialResult:
    """Import torch from `folder` in another process and run a kernel on its card."""
    device, why = _outcome(command("core.gpu_runtime.trial", ARGUMENT, str(folder)))
    return TrialResult(folder.name, driver, device, why)


def _outcome(asked: list[str]) -> tuple[str, str]:
    """Return the card's name and "", or "" and a sentence with the reason."""
    with tempfile.TemporaryFile() as output:  # nobody has to read on from a process that is left behind
        try:
            process = subprocess.Popen(
                asked, cwd=source_folder(), stdout=output, stderr=subprocess.DEVNULL, creationflags=without_window()
            )
        except OSError as error:
            return "", sentence("It could not be started: {}.", error.strerror or error)
        if why := _overdue(process):
            return "", why
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").strip().splitlines()
    try:
        told = json.loads(lines[-1])
        return str(told["device"]), unpack(told["why"])
    except (IndexError, ValueError, KeyError, TypeError):
        return "", sentence("It crashed when it was tried (exit code {}).", process.returncode)


def _overdue(process: subprocess.Popen[bytes]) -> str:
    """Wait for a process and end it; return "" if it ended in time, else a sentence."""
    try:
        process.wait(LIMIT_S)
        late = False
    except subprocess.TimeoutExpired:
        late = True
    finally:
        ended = ends(process)
    if not ended:
        return sentence("Its driver holds the program that tried it, so that it cannot be ended.")
    return sentence("It did not answer within {} seconds.", LIMIT_S) if late else ""


def kernel() -> tuple[str, str]:
    """Multiply two small matrices on the card; return its name and "", or "" and the reason. Imports torch."""
    try:
        import torch

        card = torch.accelerator.current_accelerator(check_available=True)
        if card is None:
            return "", sentence("PyTorch {} finds no card that it can use.", torch.__version__)
        side = torch.arange(SIDE, dtype=torch.float32)
        # Integers of this size are exact in fp32 whatever the order of summation.
        left, right = (side[:, None] + side) % 7, (side[:, None] * 3 + side) % 5
        if not torch.equal((left.to(card) @ right.to(card)).cpu(), left @ right):
            return "", sentence("The card multiplied wrongly.")
        return torch.get_device_module(card).get_device_name(), ""
    except Exception as error:  # noqa: BLE001  Any failure whatever means the same: not this runtime.
        return "", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(folder: str) -> int:
    """Try the runtime, in the other process, and print one line of JSON as the last output."""
    without_crash_windows()
    use_packages(packages_of(Path(folder)))
    device, why = kernel()
    if device and not _comes_from(folder):
        device, why = "", sentence("Another torch was loaded in its place.")
    print(json.dumps({"device": device, "why": pack(why)}), flush=True)
    # Skip unloading, in which a faulty driver may hang or crash.
    sys.stdout.flush()
    os._exit(0)


def _comes_from(folder: str) -> bool:
    import torch

    return Path(torch.__file__).resolve().is_relative_to(Path(folder).resolve())


if __name__ == "__main__":
    main(sys.argv[1])
