"""A torch device other than the CPU (device.cpp), built when a test first needs it.

CXXFLAGS adds options, such as those of the sanitizers, whose library must be loaded first:

    CXXFLAGS="-g1 -fsanitize=address,undefined -fno-sanitize=vptr" \
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    python -m pytest -s tests/core/second_device/test_device.py

    CXXFLAGS="-g1 -fsanitize=thread" TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
    LD_PRELOAD="$(gcc -print-file-name=libtsan.so) $(gcc -print-file-name=libstdc++.so)" \
    python -m pytest -s tests/core/second_device -k "not a_touch and not in_every_family and not test_trial"

The thread sanitizer (put `setarch -R` before python if it refuses the memory's layout) sees this source and its locks,
not what torch reads and writes; the device itself judges how the engine orders copies and kernels. Under it a fault
ends in the sanitizer's own report, so that tests which expect one fail.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from filelock import FileLock

from core.accelerators.card import Card
from core.accelerators.simulation_spec import Simulation
from core.hardware.machine import Machine, assume_machine
from core.kernels.torch_products import EIGHT_BITS
from core.spec import Abilities, TorchProduct

NAME = "second"
SOURCE = Path(__file__).with_name("device.cpp")
ABLE = Abilities(products=(TorchProduct("int8", EIGHT_BITS),))
"""What a trial finds: torch's product with int8 weights falls back to the CPU's."""
LIBRARIES = ("torch", "torch_cpu", "c10")


class SecondDevice:
    """The tests' interface to control and query the device."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.second_device_get.restype = ctypes.c_double
        library.second_device_first.restype = ctypes.c_char_p

    def plug(self, present: bool) -> None:
        """Plug in a fresh device, or unplug it."""
        self.library.second_device_plug(int(present))

    def set(self, **values: float) -> None:
        """Set `capacity`, `others`, `pin_limit` (bytes), `limit` (fraction of the capacity), `link` (bytes per second),
        `lag` (seconds for each kernel), `unified`, `one_stream` (as Apple's) and `lost` (1 or 0), `shared_lag` (seconds
        for each kernel that reads the host's memory), `fail_after` (number of launches), or `full_after` (number of
        allocations) and then `full_times`.
        """
        for name, value in values.items():
            self.library.second_device_set(name.encode(), ctypes.c_double(value))

    def get(self, name: str) -> int:
        """Return `plugged`, `violations`, `launches`, `replays`, `copies_up`, `copies_down`, `pinned`, `used`,
        `peak`, `capacity`, `unified` or `waiting` (pieces of work that are not done)."""
        return int(self.library.second_device_get(name.encode()))

    def violation(self) -> str:
        """Return the first violation of ordering, '' for none."""
        return str(self.library.second_device_first().decode())


class SecondCard(Card):
    """The engine's own class on that device, with the controls that tests use on simulated cards."""

    def __init__(self, device: SecondDevice, abilities: Abilities = ABLE) -> None:
        self.told = device
        super().__init__(torch.device(NAME, 0), abilities)

    def lose(self) -> None:
        self.told.set(lost=1)

    def come_back(self) -> None:
        self.told.set(lost=0)

    def resize(self, capacity: int) -> None:
        self.told.set(capacity=capacity)

    def others(self, nbytes: int) -> None:
        self.told.set(others=nbytes)

    @property
    def pinned_bytes(self) -> int:
        return self.told.get("pinned")


def put_in(device: SecondDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the engine open this device, with the same memory, wherever it would simulate a card."""

    def opened(index: int, simulation: Simulation | None = None, _: Abilities = ABLE) -> SecondCard:
        assert simulation is not None
        device.set(lost=0, capacity=simulation.vram)
        return SecondCard(device)

    def assumed(simulate_gpu: str | None = None, threads: int | None = None) -> Machine:
        machine = assume_machine(simulate_gpu, threads)
        gpus = tuple(replace(gpu, graphs=True) for gpu in machine.hardware.gpus)
        return replace(machine, hardware=replace(machine.hardware, gpus=gpus))

    monkeypatch.setattr("core.hardware.machine.open_accelerator", opened)
    monkeypatch.setattr("core.runtime.loader.assume_machine", assumed)


def cannot_build() -> str:
    """Return why there is no such device here, '' if there is one."""
    if not sys.platform.startswith("linux"):
        return "the second device maps memory as Linux does"
    return "" if shutil.which(compiler()) else "no C++ compiler"


@cache
def second_device() -> SecondDevice:
    """Build, load and register the device once in this process, without plugging it in."""
    path = built()
    torch.ops.load_library(path)
    device = SecondDevice(ctypes.CDLL(str(path)))
    device.library.second_device_register()
    torch._register_device_module(NAME, _module(device))
    return device


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def built() -> Path:
    """Return the library, which is cached among other temporary files, for all copies of the source alike."""
    folder = Path(torch.__file__).parent
    options = [
        "-std=c++20", "-O1", "-fPIC", "-shared", "-w",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", *(f"-l{name}" for name in LIBRARIES),
        *os.environ.get("CXXFLAGS", "").split(),
    ]  # fmt: skip
    places = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}", f"-L{folder / 'lib'}"]
    # Not the places: another checkout or environment with the same torch uses the same library.
    known = repr((compiler(), options, torch.__version__))
    key = hashlib.sha256(SOURCE.read_bytes() + known.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"hetegen-second-device-{os.getuid()}" / f"{key}.so"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    # One process compiles and the others wait: it takes much memory.
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            asked = [compiler(), str(SOURCE), *places, *options, "-o", str(unfinished)]
            # A sanitizer that is loaded first is for the tests, not for the compiler.
            subprocess.run(asked, check=True, env=os.environ | {"LD_PRELOAD": ""})
            unfinished.replace(path)
    return path


def _module(device: SecondDevice) -> ModuleType:
    """Make `torch.second` with all functions that torch and the engine need, like `torch.cuda`."""
    module = ModuleType(f"torch.{NAME}")

    def set_fraction(fraction: float, device_of: object = None) -> None:
        device.set(limit=fraction)

    parts = {
        "is_available": lambda: bool(device.get("plugged")),
        "device_count": lambda: device.get("plugged"),
        "current_device": lambda: 0,
        "get_device_name": lambda index=0: "Second device",
        "get_device_properties": lambda index=0: SimpleNamespace(
            is_integrated=bool(device.get("unified")), total_memory=device.get("capacity")
        ),
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "set_per_process_memory_fraction": set_fraction,
    }
    for name, part in parts.items():
        setattr(module, name, part)
    return module
