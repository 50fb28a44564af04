"""Whole weights of linears: their values are made only where a layer computes with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.offload.host_weight import HostWeight
from core.offload.whole_weight import WholeWeight
from core.spec import Format
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, random_prompt

PROMPT = random_prompt(12)
FAMILIES = ("mamba2", "mamba")
"""Mamba-2 converts what its head reads to the type of the head's weight; Mamba also multiplies by its step's."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[HostWeight]:
    """Return the weights whose values are made, as far as they are."""
    found, own = list[HostWeight](), HostWeight.whole
    monkeypatch.setattr(HostWeight, "whole", lambda weight: found.append(weight) or own(weight))
    return found


@pytest.mark.parametrize("card", ["vram=64MiB,link=2GB/s", "vram=34MiB,link=2GB/s,gpu=100GB/s"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_ask_for_weights_bring_none_to_a_card(
    family: str, card: str, made: list[HostWeight], tmp_path: Path
) -> None:
    make_model(family, tmp_path)
    path = GreedyPath(tmp_path, replace(OPTIONS, simulate_gpu=card))
    made.clear()
    assert path.tokens(PROMPT, 16) == reference_tokens(tmp_path, PROMPT, 16)
    assert not made


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_ask_for_weights_convert_none(family: str, made: list[HostWeight], tmp_path: Path) -> None:
    make_model(family, tmp_path, torch.bfloat16)
    path = GreedyPath(tmp_path, replace(OPTIONS, format="int8"))
    made.clear()
    assert path.tokens(PROMPT, 16)
    assert not made


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_whole_weight_multiplies_as_its_linear_and_has_its_values(format: Format, tmp_path: Path) -> None:
    make_model("mamba", tmp_path, torch.bfloat16)
    path = GreedyPath(tmp_path, replace(OPTIONS, format=format))
    linear = path.module.get_submodule("backbone.layers.0.mixer.dt_proj")
    weight, values = linear.weight, linear.host.whole()
    x = torch.randn(2, values.shape[1], 3).to(values.dtype)
    assert isinstance(weight, WholeWeight)
    assert (weight.shape, weight.dtype, weight.device) == (values.shape, values.dtype, values.device)
    assert torch.equal(weight @ x, linear.product(x.mT).mT)
    assert torch.allclose((weight @ x).float(), (values @ x).float(), atol=0.02)
    assert torch.equal(weight.float(), values.float())
    assert torch.equal(torch.cat([weight, weight]), torch.cat([values, values]))
