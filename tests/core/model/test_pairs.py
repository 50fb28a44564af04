"""Linears that follow others are found by tracing a pass, whatever their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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


def test_a_model_that_makes_tensors_of_the_processor_is_surveyed_like_others(tmp_path: Path) -> None:
    """Such a pass fails on the meta device."""
    make_model("llama", tmp_path)
    module = open_source(tmp_path).module
    expected, made = survey(module), []

    def added(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        made.append(torch.zeros(inputs[0].shape, device="cpu"))
        return (inputs[0] + made[-1], *inputs[1:])

    module.model.layers[0].register_forward_pre_hook(added)
    assert survey(module) == expected
    assert len(made) == 2


def test_a_model_that_takes_nothing_but_tensors_has_no_pairs(tmp_path: Path) -> None:
    make_model("llama", tmp_path)
    module = open_source(tmp_path).module
    expected, own = survey(module), module.model.layers[0].mlp.act_fn.forward

    def checked(given: Any) -> Tensor:
        if not isinstance(given, Tensor):
            raise TypeError("no tensor")
        return own(given)

    module.model.layers[0].mlp.act_fn.forward = checked
    alone = tuple(replace(linear, after=-1) for linear in expected.linears)
    assert expected.linears != alone
    assert survey(module) == replace(expected, linears=alone)
