"""Linears that follow others are found by tracing a pass, whatever their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.model.model_source import open_source
from core.model.trace import survey
from tests.core.families import make_model


@pytest.mark.parametrize(
    ("family", "feeding", "after"),
    [
        ("llama", {"gate_proj", "up_proj"}, "down_proj"),
        ("opt", {"fc1"}, "fc2"),
        ("gpt2", {"c_fc"}, "c_proj"),
        ("bloom", {"dense_h_to_4h"}, "dense_4h_to_h"),
        ("lfm2", {"w1", "w3"}, "w2"),
    ],
)
def test_what_reads_nothing_else_comes_after(tmp_path: Path, family: str, feeding: set[str], after: str) -> None:
    make_model(family, tmp_path)
    spec = survey(open_source(tmp_path).module)
    found = [linear for linear in spec.linears if linear.after >= 0]
    assert len(found) == spec.layers
    for linear in found:
        before = [one for one in spec.linears if one.group == linear.after]
        assert linear.name.endswith(after)
        assert {one.name.rpartition(".")[2] for one in before} == feeding
        assert {one.rows for one in before} == {linear.columns}


@pytest.mark.parametrize("family", ["phi3", "falcon", "mixtral"])
def test_what_is_not_number_by_number_or_has_other_readers_does_not(tmp_path: Path, family: str) -> None:
    """Gate and up in one linear, whose halves are split; an input shared with attention; experts."""
    make_model(family, tmp_path)
    assert not [linear.name for linear in survey(open_source(tmp_path).module).linears if linear.after >= 0]
