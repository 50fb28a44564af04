"""Formats of weights, bytes of a row in each, and the buckets of input rows (M) that planning tells apart."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, TypeAlias

Format = Literal["bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
"""From the most exact to the smallest; `bf16` means the weights as stored, whatever their type."""
FormatWish: TypeAlias = Format | Literal["auto"]
"""`auto`: the planner takes the most exact format that fits and stays usable."""
Storage = Literal["bf16", "fp16", "fp32", "int8", "int4"]
"""How weights really lie in memory: `bf16` of a model stored in fp32 is fp32."""
Strategy = Literal["hetegen", "stream", "cpu", "serial"]

ITEM_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
INT8_COLUMNS, INT4_COLUMNS = 64, 128
"""Columns of a row are padded with zeros to a multiple of these."""
INT4_GROUP = 32
QUANTUM: dict[str, int] = {"bf16": 16, "int8": 16, "int4": 16}
"""Rows are divided between devices in multiples of these: the kernels' blocks of rows."""

COPY_PIECE = 2 << 20
"""Large copies to a card go in pieces of this size, so that a small one of another stream waits for one at most."""

BUCKET_LIMITS = (1, 8, 64)
BUCKET_NAMES = ("1", "2-8", "9-64", ">64")
BUCKET_TOKENS = (1, 4, 32, 512)
"""Rows of input (M) are told apart in four buckets; these stand for each in planning."""
BUCKET_TIMED = (1, 4, 32, 256)
"""Kernels are timed with these rows of input; fewer in the last bucket, which takes most of the time of measuring."""
DECODE, FEW, PREFILL = 0, 1, 3
"""The buckets of one token, of the most that still count as few, and of long prompts."""


def format_named(name: str) -> FormatWish:
    """The format of this name; `auto` for any other."""
    return next((known for known in FORMATS if known == name), "auto")


def bucket(tokens: int) -> int:
    """Index of the bucket that `tokens` rows of input fall in: 1, 2-8, 9-64, more."""
    return bisect_left(BUCKET_LIMITS, tokens)


def padded(columns: int, multiple: int) -> int:
    """`columns` rounded up to a multiple."""
    return -(-columns // multiple) * multiple


def row_bytes(storage: Storage, columns: int) -> int:
    """Bytes of one row of weights: int8 has one fp32 scale per row, int4 one of 16 bits per group; both are padded."""
    if storage == "int8":
        return padded(columns, INT8_COLUMNS) + 4
    if storage == "int4":
        wide = padded(columns, INT4_COLUMNS)
        return wide // 2 + wide // INT4_GROUP * 2
    return columns * ITEM_BYTES[storage]
