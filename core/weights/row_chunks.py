"""Large weights are converted some rows at a time: some of the steps hold several bytes for each weight."""

from __future__ import annotations

CHUNK_ELEMENTS = 1 << 20


def row_chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Ranges of rows that together are all, each of about CHUNK_ELEMENTS weights."""
    step = max(1, CHUNK_ELEMENTS // max(1, columns))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
