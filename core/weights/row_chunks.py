"""Large weights are converted some rows at a time: some of the steps hold several bytes for each weight."""

from __future__ import annotations

CHUNK_ELEMENTS = 1 << 20


def row_chunks(rows: int, columns: int, elements: int = CHUNK_ELEMENTS) -> list[tuple[int, int]]:
    """Ranges of rows that together are all, each of about so many weights."""
    step = max(1, elements // max(1, columns))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
