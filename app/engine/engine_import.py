"""Imports torch and the engine in the engine's thread without blocking the window, which needs the GIL as well.

Measured on two cores: the window's longest pause at start fell from 330 ms to 40 ms. Linking torch's libraries had
taken a third of a second, and each of three rounds of the garbage collector 150-250 ms (`startup.environment`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

from app.engine.routed_engine import RoutedEngine
from app.engine.worker import EngineLike
from core.keyring import system_keyring
from core.paths import cache_folder
from core.remote.engine import RemoteEngine
from core.remote.keys import key_of
from core.startup.environment import importing
from core.startup.transformers_index import keep_model_index

LIBRARIES = ("torch_cpu", "torch_cuda", "torch_python")


def make_engine() -> EngineLike:
    """Create the engine, in its thread. A remote model needs neither torch nor the local engine."""
    return RoutedEngine(make_local_engine, make_remote_engine)


def make_remote_engine() -> RemoteEngine:
    """Create the engine for models on other computers, with the user's keys."""
    return RemoteEngine(lambda url: key_of(system_keyring(), url))


def make_local_engine() -> EngineLike:
    """Create the local engine, in the engine's thread or that of checks. Torch is imported here and nowhere earlier."""
    link_torch()
    keep_model_index(cache_folder())
    with importing():
        from core.engine import Engine
    return Engine()


def link_torch() -> None:
    """Load torch's libraries without holding the GIL; importing torch would hold it. Errors are left to the import.

    Nothing else may be imported meanwhile: a compiled module would wait for the linker while holding the GIL.
    """
    found = importlib.util.find_spec("torch")
    if sys.platform == "win32" or found is None or found.origin is None:
        return
    folder, ending = Path(found.origin).parent / "lib", "dylib" if sys.platform == "darwin" else "so"
    # ctypes releases the GIL while it calls a function, but not while it opens a library.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    for name in LIBRARIES:
        library = folder / f"lib{name}.{ending}"
        if library.exists():
            dlopen(os.fsencode(library), os.RTLD_NOW)
