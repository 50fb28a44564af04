"""The memory in a plan: nothing is counted twice, and nothing is missing."""

from __future__ import annotations

from dataclasses import replace

from core.planning.memory_budget import load_peak
from tests.core.machines import model


def test_a_tied_head_as_stored_is_the_input_table_and_counted_once() -> None:
    tied = model("llama-3.2-1b")
    apart = replace(tied, head_tied=False)
    assert tied.head_tied
    assert load_peak(apart, "bf16", 0, 256) - load_peak(tied, "bf16", 0, 256) == tied.embedding_bytes
    # A converted head is a separate copy beside the embedding.
    assert load_peak(apart, "int8", 0, 256) == load_peak(tied, "int8", 0, 256)
