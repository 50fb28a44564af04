"""Formats of weights that people choose from, and the buckets of input rows (M) that planning tells apart."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, TypeAlias

Format = Literal["bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
"""From the most exact to the smallest; `bf16` means the weights as stored, whatever their type."""
FormatWish: TypeAlias = Format | Literal["auto"]
"""`auto`: the planner takes the most exact format that fits and stays usable."""
KvFormat = Literal["bf16", "int8"]
"""How keys and values are kept: as the model computes them, whatever their type, or in 8 bits (half of 16)."""
KV_FORMATS: tuple[KvFormat, ...] = ("bf16", "int8")
Strategy = Literal["hetegen", "stream", "cpu", "serial"]

QUANTUM = 16
"""Rows are divided between devices in multiples of this: the kernels' blocks of rows."""

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


def kv_named(name: str) -> KvFormat:
    """The KV cache's format of this name; `bf16` for any other."""
    return "int8" if name == "int8" else "bf16"


def bucket(tokens: int) -> int:
    """Index of the bucket that `tokens` rows of input fall in: 1, 2-8, 9-64, more."""
    return bisect_left(BUCKET_LIMITS, tokens)
