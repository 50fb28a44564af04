"""The weight formats that users choose from, and the buckets of input rows (M) that planning distinguishes."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, TypeAlias

Format = Literal["bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
"""From most exact to smallest; `bf16` means the weights as stored, whatever their type."""
FormatWish: TypeAlias = Format | Literal["auto"]
"""`auto`: the planner takes the most exact format that fits and is fast enough."""
KvFormat = Literal["bf16", "int8"]
"""The KV cache's format: as the model computes it, whatever its type, or 8 bits (half of 16)."""
KV_FORMATS: tuple[KvFormat, ...] = ("bf16", "int8")
Strategy = Literal["hetegen", "stream", "cpu", "serial"]

QUANTUM = 16
"""Rows are divided between devices in multiples of this, the kernels' row block."""

COPY_PIECE = 2 << 20
"""Large copies to a GPU are made in pieces of this size, so that a small copy of another stream waits for one at
most."""

BUCKET_LIMITS = (1, 16, 64)
BUCKET_NAMES = ("1", "2-16", "17-64", ">64")
BUCKET_TOKENS = (1, 4, 32, 512)
"""Numbers of input rows (M) that represent each bucket in planning."""
BUCKET_TIMED = (1, 4, 32, 256)
"""Numbers of input rows with which kernels are timed; fewer in the last bucket, which dominates the measuring time."""
DECODE, FEW, PREFILL = 0, 1, 3
"""The buckets of a single token, of few tokens, and of long prompts."""


def tokens_with(few: int) -> tuple[int, ...]:
    """Return BUCKET_TOKENS with other rows to represent the bucket FEW."""
    return (*BUCKET_TOKENS[:FEW], few, *BUCKET_TOKENS[FEW + 1 :])


def format_named(name: str) -> FormatWish:
    """Return the format of this name; `auto` for any other."""
    return next((known for known in FORMATS if known == name), "auto")


def kv_named(name: str) -> KvFormat:
    """Return the KV cache format of this name; `bf16` for any other."""
    return "int8" if name == "int8" else "bf16"


def bucket(tokens: int) -> int:
    """Return the index of the bucket for `tokens` input rows: 1, 2-16, 17-64, more."""
    return bisect_left(BUCKET_LIMITS, tokens)
