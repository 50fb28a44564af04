"""Ranges of rows for converting large weights in chunks: some steps need several bytes per weight."""

from __future__ import annotations

CHUNK_ELEMENTS = 1 << 20


def row_chunks(rows: int, columns: int, elements: int = CHUNK_ELEMENTS) -> list[tuple[int, int]]:
    """Divide `rows` into ranges of about `elements` weights each."""
    step = max(1, elements // max(1, columns))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
