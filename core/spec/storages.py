"""The memory layouts of quantised weights as one table: bits, groups, scales, minimums, code books.

A weight is `scale * q`, `scale * q + minimum` or `scale * codes[q]`; q are integers, or float8. The comments in the
table name the GGUF and other formats that a storage keeps without rounding again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FloatStorage = Literal["bf16", "fp16", "fp32"]
Storage = Literal[
    "bf16", "fp16", "fp32", "int8", "int6", "int4",
    "int8g32", "int6g32", "int6g32m", "int6k32m", "int6k16", "int6k16m",
    "int4g32", "int4g32b", "int4g32m", "int4g32w", "int4g128w", "int4k16", "int4k16m",
    "iq4nl", "iq4xs", "mxfp4", "nvfp4", "nvfp4w", "nf4", "fp8",
]  # fmt: skip
"""The actual storage in memory: `bf16` of a model stored in fp32 is fp32."""
ScaleKind = Literal["bf16", "fp16", "fp32", "fine"]

ITEM_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
SCALE_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4, "fine": 1}
COARSE_COLUMNS = 256
"""Columns that share one fp16 factor if scales are `fine`."""
GROUP = 32
"""Columns that share a scale in our own formats of few bits."""

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The values of fp4 (E2M1), doubled."""
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""GGUF's IQ4: non-linear levels, denser where weights are."""


NF4 = (-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112)
"""bitsandbytes' nf4 as integers: its levels times 112, with an error of 0.5 % where weights are dense."""


@dataclass(frozen=True)
class Layout:
    """A way to store weights: q of `bits` bits, and a scale for each `group` of columns of a row (0 = the whole row).

    `scale`: the type of a group's scale; `fine` is an int8 times an fp16 factor for each COARSE_COLUMNS. `minimum`:
    each group adds one, of the scale's type. `codes`: q is an index into this code book. `floats`: q is a float8
    (e4m3), never NaN. A q of 4 or 6 bits is stored as q + `zero`. Rows are padded to a multiple of `width` columns.
    """

    bits: int
    group: int
    scale: ScaleKind
    minimum: bool = False
    codes: tuple[int, ...] = ()
    width: int = 128
    floats: bool = False

    @property
    def zero(self) -> int:
        """The code that represents zero."""
        return 0 if self.bits == 8 or self.minimum or self.codes else 1 << self.bits - 1

    def columns(self, columns: int) -> int:
        """Return the columns of a padded row."""
        return -(-columns // self.width) * self.width

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row."""
        return self.columns(columns) // self.group if self.group else 1

    def coarse(self, columns: int) -> int:
        """Return the number of factors that a row's fine scales share."""
        return -(-self.columns(columns) // COARSE_COLUMNS) if self.scale == "fine" else 0

    def scale_bytes(self, columns: int) -> int:
        """Return the bytes of a row's scales and minimums."""
        one = self.groups(columns) * SCALE_BYTES[self.scale] + 2 * self.coarse(columns)
        return one * (2 if self.minimum else 1)

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row, including scales."""
        return self.columns(columns) * self.bits // 8 + self.scale_bytes(columns)


LAYOUTS: dict[Storage, Layout] = {
    "int8": Layout(8, 0, "fp32", width=64),
    "int6": Layout(6, GROUP, "fine"),
    "int4": Layout(4, GROUP, "fine", minimum=True),  # Q4_K
    "int8g32": Layout(8, 32, "fp16"),  # Q8_0
    "int6g32": Layout(6, 32, "fp16"),  # Q5_0
    "int6g32m": Layout(6, 32, "fp16", minimum=True),  # Q5_1
    "int6k32m": Layout(6, 32, "fine", minimum=True),  # Q5_K
    "int6k16": Layout(6, 16, "fine"),  # Q6_K
    "int6k16m": Layout(6, 16, "fine", minimum=True),  # rows of different K types
    "int4g32": Layout(4, 32, "fp16"),  # Q4_0
    "int4g32b": Layout(4, 32, "bf16"),  # compressed-tensors with scales of bf16
    "int4g32m": Layout(4, 32, "fp16", minimum=True),  # Q4_1
    "int4g32w": Layout(4, 32, "fp32", minimum=True),  # GPTQ and AWQ with zero points, which fp16 would round
    "int4g128w": Layout(4, 128, "fp32", minimum=True),  # the same in groups of 128 or multiples
    "int4k16": Layout(4, 16, "fine"),  # Q3_K
    "int4k16m": Layout(4, 16, "fine", minimum=True),  # Q2_K
    "iq4nl": Layout(4, 32, "fp16", codes=IQ4),
    "iq4xs": Layout(4, 32, "fine", codes=IQ4),
    "mxfp4": Layout(4, 32, "bf16", codes=E2M1),
    "nvfp4": Layout(4, 16, "fp16", codes=E2M1),
    "nvfp4w": Layout(4, 16, "fp32", codes=E2M1),  # NVFP4 with a further scale for the whole tensor
    "nf4": Layout(4, 32, "fp32", codes=NF4),  # bitsandbytes, its levels rounded
    "fp8": Layout(8, 128, "fp32", floats=True),  # FP8 with scales per block, per row or per tensor
}
"""The quantised storages; `bf16`, `fp16` and `fp32` are plain numbers."""

REORDERED: frozenset[Storage] = frozenset(("int4g32w", "int4g128w"))
"""Storages whose columns may be permuted."""

ROUNDED: frozenset[Storage] = frozenset(("nf4",))
"""Storages that round the files' values again, slightly, because their code books are integers."""


def cut_columns(storage: Storage) -> int:
    """Return the number of columns at whose multiples a weight can be cut into two valid weights."""
    layout = LAYOUTS.get(storage)
    return 1 if layout is None else max(layout.width, COARSE_COLUMNS if layout.scale == "fine" else 1)


def row_bytes(storage: Storage, columns: int) -> int:
    """Return the bytes of one row of weights, scales and padding included."""
    layout = LAYOUTS.get(storage)
    return columns * ITEM_BYTES[storage] if layout is None else layout.row_bytes(columns)


def bits_of(storage: Storage) -> int:
    """Return the bits of one weight, without scales."""
    layout = LAYOUTS.get(storage)
    return 8 * ITEM_BYTES[storage] if layout is None else layout.bits


def turned(storage: Storage) -> Storage:
    """Return the storage of a transposed copy of weights: floats as they are, others in 8 bits, which is lossless for
    fewer bits."""
    return storage if storage in ITEM_BYTES else "int8"


def kin(storage: Storage) -> Storage:
    """Return the most similar storage that is timed on every machine."""
    return storage if storage in ITEM_BYTES else "int8" if bits_of(storage) == 8 else "int4"
