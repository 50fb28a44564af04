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


@pytest.mark.parametrize("card", [None, "vram=64MiB,link=2GB/s", "vram=34MiB,link=2GB/s,gpu=100GB/s"])
@pytest.mark.parametrize("family", ["mamba2", "mamba"])
def test_layers_that_ask_for_weights_make_none(
    family: str, card: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mamba-2 converts what its head reads to the type of the head's weight, Mamba multiplies by its step's, too."""
    made = list[HostWeight]()
    own = HostWeight.whole
    make_model(family, tmp_path)
    expected = reference_tokens(tmp_path, PROMPT, 16)
    path = GreedyPath(tmp_path, replace(OPTIONS, simulate_gpu=card))
    monkeypatch.setattr(HostWeight, "whole", lambda weight: made.append(weight) or own(weight))
    assert path.tokens(PROMPT, 16) == expected
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
