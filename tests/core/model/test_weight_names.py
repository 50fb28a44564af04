"""Tensors of a checkpoint that config.json does not ask for: ignored if harmless, otherwise a reason to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from core.errors import ModelUnreadable
from core.events import LoadOptions
from core.model.model_source import open_source
from core.model.trace import survey
from core.spec import Format
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt

PROMPT = random_prompt(24)
LAYER = "model.layers.0"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Any], **config: Any) -> Path:
    tensors = {name: value.clone() for name, value in load((folder / "model.safetensors").read_bytes()).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def add(**tensors: Tensor) -> Callable[[Tensors], None]:
    return lambda found: found.update(tensors)


HARMLESS: dict[str, Tensors] = {
    "vision tower": {"vision_tower.encoder.layers.0.q_proj.weight": torch.ones(2)},
    "old positions": {f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.ones(8)},
    "old masks": {
        f"{LAYER}.self_attn.masked_bias": torch.ones(()),
        f"{LAYER}.attn.bias": torch.ones(1, 1, 4, 4).byte(),
    },
    "scales of an 8-bit cache": {f"{LAYER}.self_attn.k_scale": torch.ones(1)},
    "mtp": {"mtp.layers.0.self_attn.q_proj.weight": torch.ones(64, 64), "mtp.fc.weight": torch.ones(64, 128)},
    "mtp as layers": {
        "model.layers.3.eh_proj.weight": torch.ones(64, 128),
        "model.layers.3.enorm.weight": torch.ones(64),
    },
    "a bias of zeros": {f"{LAYER}.self_attn.q_proj.bias": torch.zeros(64)},
    "another head": {"score.weight": torch.ones(2, 64)},
}
HARMFUL: dict[str, Tensors] = {
    "a bias": {f"{LAYER}.self_attn.q_proj.bias": torch.ones(64)},
    "a norm": {f"{LAYER}.self_attn.q_norm.weight": torch.ones(16)},
    "an adapter": {f"{LAYER}.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)},
    "a scale": {f"{LAYER}.self_attn.q_proj.weight_scale": torch.ones(64, 1)},
    "more layers": {"model.layers.3.self_attn.q_proj.weight": torch.ones(64, 64)},
    "a bias of the head": {"lm_head.bias": torch.ones(199)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model("llama", tmp_path, tie_word_embeddings=False)


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("other")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_generates_no_text_is_left_alone(name: str, folder: Path) -> None:
    expected = reference_tokens(folder, PROMPT, 8)
    rewrite(folder, add(**HARMLESS[name]))
    assert GreedyPath(folder).tokens(PROMPT, 8) == expected


@pytest.mark.parametrize("name", HARMFUL)
def test_a_tensor_without_a_place_is_a_reason_to_stop(name: str, folder: Path) -> None:
    rewrite(folder, add(**HARMFUL[name]))
    with pytest.raises(ModelUnreadable, match="1 tensors of the weights have no place") as refused:
        GreedyPath(folder)
    assert next(iter(HARMFUL[name])) in str(refused.value)


def test_layers_that_guess_ahead_are_left_alone_where_config_announces_them(folder: Path) -> None:
    expected = reference_tokens(folder, PROMPT, 8)
    rewrite(folder, add(**HARMFUL["more layers"]), num_nextn_predict_layers=1)
    assert GreedyPath(folder).tokens(PROMPT, 8) == expected


def test_integers_in_the_place_of_weights_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({f"{LAYER}.input_layernorm.weight": torch.ones(64).to(torch.int8)}))
    with pytest.raises(ModelUnreadable, match="is no floating-point number"):
        GreedyPath(folder)


def test_numbers_of_64_bits_are_computed_with_32(folder: Path) -> None:
    expected = reference_tokens(folder, PROMPT, 8)
    rewrite(folder, lambda tensors: tensors.update({name: value.double() for name, value in tensors.items()}))
    assert GreedyPath(folder).tokens(PROMPT, 8) == expected


def two_tensors(tensors: Tensors) -> None:
    tensors[HEAD] = torch.randn(tensors[TABLE].shape, generator=torch.Generator().manual_seed(3))


def two_equal_tensors(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[TABLE].clone()


@pytest.mark.parametrize(("change", "tied"), [(two_tensors, False), (two_equal_tensors, True)])
def test_a_tie_holds_where_the_file_agrees(change: Callable[[Tensors], Any], tied: bool, folder: Path) -> None:
    rewrite(folder, change, tie_word_embeddings=True)
    assert survey(open_source(folder).module).head_tied is tied
    assert GreedyPath(folder).tokens(PROMPT, 24) == reference_tokens(folder, PROMPT, 24)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_two_tensors_are_two_in_every_format(
    format: Format, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The tie that config.json claims changes nothing: the same tokens as without the claim."""
    honest = make_model("llama", tmp_path_factory.mktemp("honest"), tie_word_embeddings=False)
    rewrite(honest, two_tensors)
    rewrite(folder, two_tensors, tie_word_embeddings=True)
    options = LoadOptions(context=1024, threads=1, format=format)
    assert GreedyPath(folder, options).tokens(PROMPT, 24) == GreedyPath(honest, options).tokens(PROMPT, 24)


def test_a_tied_head_is_counted_once() -> None:
    spec = survey(open_source("shape:llama-3.2-1b").module)
    assert spec.head_tied
    assert spec.parameters == 1_235_814_400


@pytest.mark.parametrize("missing", [HEAD, TABLE])
def test_one_tensor_is_for_both(missing: str, folder: Path, other: Path) -> None:
    tied = make_model("llama", other)
    expected = reference_tokens(tied, PROMPT, 24)
    there = load((tied / "model.safetensors").read_bytes())[TABLE]
    rewrite(folder, lambda tensors: (tensors.update({TABLE: there, HEAD: there.clone()}), tensors.pop(missing)))
    assert survey(open_source(folder).module).head_tied
    assert GreedyPath(folder).tokens(PROMPT, 24) == expected
