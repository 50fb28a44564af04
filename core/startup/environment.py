"""How torch and transformers are imported: with what environment variables, and without the garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

SETTINGS = {
    # What transformers would otherwise do by itself: open pull requests on the Hub, load binaries from it, report home.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "USE_HUB_KERNELS": "NO",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Nothing here is compiled at run time, and a bundle has no compiler.
    "TORCHDYNAMO_DISABLE": "1",
    # torch's idle threads would otherwise look for work for milliseconds on cores that our kernels' threads need.
    # On Linux it has GNU's OpenMP; on Windows and macOS Intel's and LLVM's, which would look for 200 ms.
    "GOMP_SPINCOUNT": "2000",
    "KMP_BLOCKTIME": "0",
}


def prepare_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what the user has not set."""
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)


@contextmanager
def importing() -> Iterator[None]:
    """Around the import of the engine: the collector would look through a thousand modules again and again, in all for
    half a second, and holds Python's lock for 150-250 ms each time. They stay for good: it never has to."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
    gc.freeze()
