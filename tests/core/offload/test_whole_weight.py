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


@pytest.mark.parametrize("card", [None, "vram=64MiB,link=2GB/s"])
def test_a_layer_that_reads_its_heads_type_makes_no_weight(
    card: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mamba-2 converts what its head reads to the type of the head's weight."""
    made = list[HostWeight]()
    own = HostWeight.whole
    make_model("mamba2", tmp_path)
    expected = reference_tokens(tmp_path, PROMPT, 16)
    path = GreedyPath(tmp_path, replace(OPTIONS, simulate_gpu=card))
    monkeypatch.setattr(HostWeight, "whole", lambda weight: made.append(weight) or own(weight))
    assert path.tokens(PROMPT, 16) == expected
    assert not made


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_layer_that_computes_with_a_weight_gets_its_values(format: Format, tmp_path: Path) -> None:
    """Mamba multiplies by its step's weight itself."""
    make_model("mamba", tmp_path, torch.bfloat16)
    linear = GreedyPath(tmp_path, replace(OPTIONS, format=format)).module.get_submodule(
        "backbone.layers.0.mixer.dt_proj"
    )
    weight, values = linear.weight, linear.host.whole()
    x = torch.randn(values.shape[1], 3).to(values.dtype)
    assert isinstance(weight, WholeWeight)
    assert (weight.shape, weight.dtype, weight.device) == (values.shape, values.dtype, values.device)
    assert torch.equal(weight @ x, values @ x)
    assert torch.equal(weight.float(), values.float())
