"""The environment in which torch and transformers are imported: variables, and a paused garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

SETTINGS = {
    # Disable what transformers does by default: open pull requests on the Hub, load binaries from it, send telemetry.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "USE_HUB_KERNELS": "NO",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Nothing is compiled at run time, and a bundle has no compiler.
    "TORCHDYNAMO_DISABLE": "1",
    # Otherwise torch's idle threads would spin for milliseconds on cores that our kernels' threads need: GNU's OpenMP
    # on Linux for some milliseconds, Intel's and LLVM's (Windows, macOS) for 200 ms.
    "GOMP_SPINCOUNT": "2000",
    "KMP_BLOCKTIME": "0",
}


def prepare_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that the user has not set."""
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)


@contextmanager
def importing() -> Iterator[None]:
    """Context for importing the engine: pauses the garbage collector, which would scan a thousand modules repeatedly,
    half a second in total, holding the GIL for 150-250 ms each time. The imported objects are then frozen: they live
    forever."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
    gc.freeze()
