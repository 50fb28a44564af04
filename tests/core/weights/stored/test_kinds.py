"""Every kind of quantised safetensors gives the weights that it stands for, and transformers' words with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.model.model_source import open_source
from tests.core.greedy import random_prompt
from tests.core.weights.stored.packers import FORMATS
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
        assert torch.equal(found, value), tensor
    assert len(source.packed) in (0, sum(LINEAR.search(tensor) is not None for tensor in exact))


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    exact = write_stored(tmp_path / "m", FORMATS[name])
    expected = reference(tmp_path / "m", exact, random_prompt(40), 24)
    assert len(set(expected)) > 5, "a model that repeats itself proves nothing"
    assert greedy(tmp_path / "m", 24) == expected
