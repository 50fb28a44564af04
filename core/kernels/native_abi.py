"""The compiled library: found beside this file, checked against its ABI version and opened; and its numbers of formats.

Absent or built for another system, it is None, and torch computes. The calls themselves are `native_library`'s.
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
"""The kernel for all layouts, and the bit of a format's number from which on it says which."""
VALUES = {8: 0, 4: 1, 6: 3}
"""How a value without a code book is kept, by its bits."""
SCALE_KINDS = {"bf16": 0, "fp16": 1, "fp32": 2, "fine": 3}
BOOKS: dict[tuple[int, ...], int] = {E2M1: 0, IQ4: 1, NF4: 2}
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INSTRUCTION_SETS = {"avx512vnni": 3, "avxvnni": 2, "avx2": 1, "neon": 4}
"""From the best to the least, with the library's numbers."""
VERSION = 22
"""ABI version; must match `hetegen_version` in dispatch.c."""
PATTERNS = ("_native*.so", "_native*.pyd", "_native*.dll", "_native*.dylib")

_INT, _LONG, _ADDRESS, _FLOAT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_CALLS: dict[str, tuple[type[ctypes._SimpleCData[int]] | None, list[type]]] = {
    "hetegen_copy": (None, [_ADDRESS, _ADDRESS, _LONG]),
    "hetegen_copy_rows": (None, [_ADDRESS, _ADDRESS, _LONG, _LONG, _LONG]),
    "hetegen_version": (_INT, []),
    "hetegen_supports": (_INT, [_INT]),
    "hetegen_input_kind": (_INT, [_INT, _INT, _LONG, _INT]),
    "hetegen_input_bytes": (_LONG, [_LONG, _LONG, _INT]),
    "hetegen_panel_bytes": (_LONG, [_LONG]),
    "hetegen_prepare": (None, [_INT, _ADDRESS, _INT, _LONG, _LONG, _LONG, _ADDRESS, _INT, _INT]),
    "hetegen_matmul": (
        None,
        [_INT, _LONG, _ADDRESS, _ADDRESS, _LONG, _LONG, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_rms_norm": (None, [_INT, _ADDRESS, _INT, _LONG, _LONG, _ADDRESS, _FLOAT, _INT, _ADDRESS, _INT]),
    "hetegen_encode": (
        None,
        [_INT, _INT, _ADDRESS, _INT, _LONG, _LONG, _LONG, _ADDRESS, _LONG, _ADDRESS, _LONG, _INT],
    ),
    "hetegen_attention_bytes": (_LONG, [_ADDRESS]),
    "hetegen_attention": (
        None,
        [_INT, *(_ADDRESS,) * 5, _FLOAT, _FLOAT, _ADDRESS, _INT, _ADDRESS, _INT],
    ),
    "hetegen_states": (None, [_INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _INT]),
    "hetegen_layer_bytes": (_LONG, [_INT, _ADDRESS, _INT, _LONG, _ADDRESS]),
    "hetegen_layer_begin": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, _LONG, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT],
    ),
    "hetegen_layer_end": (
        None,
        [_INT, _ADDRESS, _ADDRESS, _INT, *(_ADDRESS,) * 5, _FLOAT, _INT, _ADDRESS, _ADDRESS, _INT],
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
    "hetegen_head_bytes": (_LONG, [_INT, _ADDRESS, _ADDRESS, _LONG, _LONG, _INT]),
    "hetegen_head": (_LONG, [_INT, *(_ADDRESS,) * 3, _INT, *(_LONG,) * 3, _ADDRESS, _ADDRESS, _INT]),
    **dict.fromkeys(("hetegen_convolve", "hetegen_delta_rule", "hetegen_state_scan"), (None, [_INT, _ADDRESS, _INT])),
}
MOST_PARTS = 16
"""Weights that one `hetegen_matmul` takes at most."""
PART_FIELDS = 8
"""Numbers that describe each of them."""
SHAPE_FIELDS = 25
"""Numbers that describe an attention call."""


@cache
def format_number(storage: str) -> int:
    """The library's number of a storage: a kernel, and how grouped weights lie, as kernels.h says."""
    if storage in FORMATS:
        return FORMATS[storage]
    layout = LAYOUTS[cast(Storage, storage)]
    values = 2 if layout.codes else VALUES[layout.bits]
    described = values | SCALE_KINDS[layout.scale] << 2 | (layout.group == 16) << 4 | layout.minimum << 5
    described |= (layout.group == 128) << 8 | layout.floats << 9
    return GROUPED | (described | (BOOKS[layout.codes] << 6 if layout.codes else 0)) << LAYOUT_BITS


@cache
def library_files() -> tuple[Path, ...]:
    """The compiled libraries that the package was built with; that for this Python first, if there is one."""
    folder = Path(__file__).parent
    found = sorted(file for pattern in PATTERNS for file in folder.glob(pattern))
    own = sysconfig.get_config_var("EXT_SUFFIX") or ""
    return tuple(sorted(found, key=lambda file: not file.name.endswith(own)))


@cache
def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the library has kernels for and this processor knows, best first."""
    compiled = library()
    if compiled is None:
        return ()
    return tuple(name for name, number in INSTRUCTION_SETS.items() if compiled.hetegen_supports(number))


@cache
def library() -> ctypes.CDLL | None:
    """The first of `library_files` that fits this system and this version; None without one."""
    return next((opened for file in library_files() if (opened := _opened(file)) is not None), None)


def _opened(file: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _CALLS.items():
            call = getattr(library, name)
            call.restype, call.argtypes = result, arguments
    except (OSError, AttributeError):
        # Built for another system, or by an older version of this package: torch's kernels do the work.
        return None
    return library if library.hetegen_version() == VERSION else None
