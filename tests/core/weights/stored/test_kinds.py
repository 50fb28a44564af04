"""Every kind of quantised safetensors gives the weights that it represents, and transformers' tokens with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from core.model.model_source import open_source
from core.spec import ROUNDED
from tests.core.greedy import random_prompt
from tests.core.weights.stored.packers import FORMATS, Format, Integers, awq
from tests.core.weights.stored.tiny_stored import LINEAR, greedy, reference, write_stored


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_what_the_files_stand_for_to_the_last_bit(name: str, tmp_path: Path) -> None:
    exact = write_stored(tmp_path / "m", FORMATS[name])
    source = open_source(tmp_path / "m")
    assert set(source.stored.values()) == {FORMATS[name].storage}
    assert set(source.weights) == set(exact)
    for tensor, value in exact.items():
        linear = tensor.removesuffix(".weight")
        found = source.packed[linear].dequantize(torch.float32) if linear in source.packed else source.weights[tensor]
        if FORMATS[name].storage in ROUNDED and linear in source.packed:
            assert (found - value).norm() < 0.006 * value.norm()
        else:
            assert torch.equal(found, value), tensor
    assert len(source.packed) in (0, sum(LINEAR.search(tensor) is not None for tensor in exact))


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    exact = write_stored(tmp_path / "m", FORMATS[name])
    if FORMATS[name].storage in ROUNDED:
        packed = open_source(tmp_path / "m").packed
        exact |= {f"{linear}.weight": weight.dequantize(torch.float32) for linear, weight in packed.items()}
    expected = reference(tmp_path / "m", exact, random_prompt(40), 24)
    assert len(set(expected)) > 5, "a model that repeats itself proves nothing"
    assert greedy(tmp_path / "m", 24) == expected


@pytest.mark.parametrize("group", [128, 0])
def test_larger_groups_take_less_memory(group: int, tmp_path: Path) -> None:
    """AWQ's usual group: exactly 4.5 bits per weight."""
    stored = Format(lambda weight: awq(weight, Integers(group=group, symmetric=False)), {"quant_method": "awq"})
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 384}
    exact = write_stored(tmp_path / "m", stored, **sizes)
    source = open_source(tmp_path / "m")
    assert set(source.stored.values()) == {"int4g128w"}
    for linear, weight in source.packed.items():
        assert torch.equal(weight.dequantize(torch.float32), exact[f"{linear}.weight"])
        assert weight.nbytes * 8 == 4.5 * exact[f"{linear}.weight"].numel()
    assert greedy(tmp_path / "m", 16) == reference(tmp_path / "m", exact, random_prompt(40), 16)


def test_fp8_without_padding_is_used_where_it_lies(tmp_path: Path) -> None:
    """Nothing is converted or copied."""
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 384}
    exact = write_stored(tmp_path / "m", FORMATS["fp8 in blocks"], **sizes)
    source = open_source(tmp_path / "m")
    linear = "model.layers.0.mlp.down_proj"
    weight, codes = source.packed[linear], load((tmp_path / "m" / "model.safetensors").read_bytes())[f"{linear}.weight"]
    assert weight.data.data_ptr() == source.packed[linear].data.data_ptr()
    assert torch.equal(weight.data.view(torch.float8_e4m3fn).float(), codes.float())
    assert greedy(tmp_path / "m", 16) == reference(tmp_path / "m", exact, random_prompt(40), 16)
    assert not list((tmp_path / "m" / "cache").rglob("*.weights"))
