"""Finds the compiled library beside this file, checks its ABI version and loads it; holds its format numbers.

If it is missing or built for another system, `library` returns None and torch computes. The calls are wrapped by
`native_library`.
"""

from __future__ import annotations

import ctypes
import sysconfig
from functools import cache
from pathlib import Path
from typing import cast

import torch

from core.spec import E2M1, IQ4, LAYOUTS, NF4, Storage

FORMATS = {"int8": 0, "bf16": 1, "fp16": 2}
GROUPED, LAYOUT_BITS = 3, 2
"""The format number of the kernel for all grouped layouts, and the bit position above which the layout is encoded."""
VALUES = {8: 0, 4: 1, 6: 3}
"""Code of the value encoding of storages without a code book, by bits per value."""
SCALE_KINDS = {"bf16": 0, "fp16": 1, "fp32": 2, "fine": 3}
BOOKS: dict[tuple[int, ...], int] = {E2M1: 0, IQ4: 1, NF4: 2}
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INSTRUCTION_SETS = {"avx512vnni": 3, "avxvnni": 2, "avx2": 1, "neon": 4}
"""Best first, with the library's numbers."""
VERSION = 31
"""ABI version; must match `hetegen_version` in dispatch.c."""
PATTERNS = ("_native*.so", "_native*.pyd", "_native*.dll", "_native*.dylib")

_INT, _LONG, _ADDRESS, _FLOAT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_CALLS: dict[str, tuple[type[ctypes._SimpleCData[int]] | None, list[type]]] = {
    "hetegen_copy": (None, [_ADDRESS, _ADDRESS, _LONG]),
    "hetegen_copy_rows": (None, [_ADDRESS, _ADDRESS, _LONG, _LONG, _LONG]),
    "hetegen_version": (_INT, []),
    "hetegen_supports": (_INT, [_INT]),
    "hetegen_attends_short": (_INT, []),
    "hetegen_input_kind": (_INT, [_INT, _INT, _LONG, _INT]),
    "hetegen_input_bytes": (_LONG, [_LONG, _LONG, _INT]),
    "hetegen_panel_bytes": (_LONG, [_LONG]),
    "hetegen_prepare": (None, [_INT, _ADDRESS, _INT, _LONG, _LONG, _LONG, _ADDRESS, _INT, _INT]),
    "hetegen_matmul": (
        None,
        [_INT, _LONG, _ADDRESS, _ADDRESS, _LONG, _LONG, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_rms_norm": (None, [_INT, _ADDRESS, _INT, _LONG, _LONG, _ADDRESS, _FLOAT, _INT, _INT, _ADDRESS, _INT]),
    "hetegen_encode": (
        None,
        [_INT, _INT, _ADDRESS, _INT, _LONG, _LONG, _LONG, _ADDRESS, _LONG, _ADDRESS, _LONG, _INT],
    ),
    "hetegen_attention_bytes": (_LONG, [_ADDRESS]),
    "hetegen_attention": (
        None,
        [_INT, *(_ADDRESS,) * 5, _FLOAT, _FLOAT, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_prompt_attention_bytes": (_LONG, [_ADDRESS, _INT]),
    "hetegen_prompt_attention": (
        _INT,
        [_INT, *(_ADDRESS,) * 4, _INT, _ADDRESS, _FLOAT, _FLOAT, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_states": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _INT]),
    "hetegen_layer_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _ADDRESS]),
    "hetegen_layer_begin": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT],
    ),
    "hetegen_layer_end": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 5, _FLOAT, _INT, _ADDRESS, _LONG, _ADDRESS, _ADDRESS, _INT],
    ),
    "hetegen_layer_attend": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 5, _FLOAT, _INT, *(_ADDRESS,) * 3, _INT],
    ),
    "hetegen_layers_bytes": (_LONG, [_INT, _LONG, _ADDRESS, _INT, _LONG, _INT]),
    "hetegen_layers": (None, [_INT, _LONG, _ADDRESS, _ADDRESS, _INT, _LONG, _ADDRESS, _ADDRESS, _INT]),
    "hetegen_experts_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _LONG, _INT]),
    "hetegen_route_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG]),
    "hetegen_route": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, *(_ADDRESS,) * 4, _INT]),
    "hetegen_mixture_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _INT]),
    "hetegen_mixture": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, _ADDRESS, _ADDRESS, _INT]),
    "hetegen_experts": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, _LONG, *(_ADDRESS,) * 4, _INT]),
    "hetegen_heads_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG]),
    "hetegen_heads": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _LONG, _LONG, _INT, _LONG, _ADDRESS, _LONG, _LONG, _ADDRESS, _INT],
    ),
    "hetegen_latent_layer_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _ADDRESS]),
    "hetegen_latent_layer": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, *(_ADDRESS,) * 3, _INT]),
    "hetegen_recurrent_layer_bytes": (_LONG, [_INT, _ADDRESS, _INT]),
    "hetegen_recurrent_layer": (None, [_INT, _INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 3, _INT]),
    "hetegen_block_bytes": (_LONG, [_INT, _ADDRESS, _INT, _INT]),
    "hetegen_block": (None, [_INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 3, _INT]),
    "hetegen_head_bytes": (_LONG, [_INT, _ADDRESS, _ADDRESS, _LONG, _LONG, _INT]),
    "hetegen_head": (_LONG, [_INT, *(_ADDRESS,) * 3, _INT, *(_LONG,) * 3, _ADDRESS, _ADDRESS, _INT]),
    **dict.fromkeys(("hetegen_convolve", "hetegen_delta_rule", "hetegen_state_scan"), (None, [_INT, _ADDRESS, _INT])),
}
MOST_PARTS = 16
"""Maximum number of weights in one `hetegen_matmul` call."""
PART_FIELDS = 8
"""Integers that describe each of them."""
SHAPE_FIELDS = 25
"""Integers that describe the shape of an attention call."""


@cache
def format_number(storage: str) -> int:
    """Return the library's number of a storage: the kernel, and the layout of grouped weights as encoded in
    kernels.h."""
    if storage in FORMATS:
        return FORMATS[storage]
    layout = LAYOUTS[cast(Storage, storage)]
    values = 2 if layout.codes else VALUES[layout.bits]
    described = values | SCALE_KINDS[layout.scale] << 2 | (layout.group == 16) << 4 | layout.minimum << 5
    described |= (layout.group == 128) << 8 | layout.floats << 9
    return GROUPED | (described | (BOOKS[layout.codes] << 6 if layout.codes else 0)) << LAYOUT_BITS


@cache
def library_files() -> tuple[Path, ...]:
    """Return the compiled libraries in the package, the one built for this Python first."""
    folder = Path(__file__).parent
    found = sorted(file for pattern in PATTERNS for file in folder.glob(pattern))
    own = sysconfig.get_config_var("EXT_SUFFIX") or ""
    return tuple(sorted(found, key=lambda file: not file.name.endswith(own)))


@cache
def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that both the library and this processor support, best first."""
    compiled = library()
    if compiled is None:
        return ()
    return tuple(name for name, number in INSTRUCTION_SETS.items() if compiled.hetegen_supports(number))


@cache
def library() -> ctypes.CDLL | None:
    """Load the first of `library_files` that fits this system and ABI version; None if there is none."""
    return next((opened for file in library_files() if (opened := _opened(file)) is not None), None)


def _opened(file: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _CALLS.items():
            call = getattr(library, name)
            call.restype, call.argtypes = result, arguments
    except (OSError, AttributeError):
        # Built for another system, or by an older version of this package: torch's kernels are used instead.
        return None
    return library if library.hetegen_version() == VERSION else None
