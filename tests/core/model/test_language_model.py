"""Loading and running a module tree: what fidelity tests over entire families cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from core.errors import ModelUnreadable
from core.model.blueprint import build, context_limit, decoder_layers, read_config
from core.model.filling import fill
from core.model.language_model import ForwardStopped
from core.weights.checkpoint import Checkpoint
from tests.core.families import FAMILIES, make_model
from tests.core.greedy import GreedyPath, random_prompt

PROMPT = random_prompt(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def path(folder: Path) -> GreedyPath:
    return GreedyPath(folder)


def test_the_blueprint_takes_no_memory(folder: Path) -> None:
    module = build(read_config(folder), torch.float32)
    assert all(value.is_meta for value in module.parameters())
    assert not module.training
    assert len(decoder_layers(module)) == 3
    assert context_limit(module.config) == 1024


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_layers_and_context_found(family: str, tmp_path: Path) -> None:
    module = build(read_config(make_model(family, tmp_path)), torch.float32)
    expected = FAMILIES[family].get("num_hidden_layers", 3)
    assert len(decoder_layers(module)) == expected
    assert context_limit(module.config) == 1024


def test_filling_says_how_far_it_is_and_leaves_nothing_empty(folder: Path) -> None:
    module = build(read_config(folder), torch.float32)
    fractions = list(fill(module, Checkpoint(folder)))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert not any(value.is_meta for value in (*module.parameters(), *module.buffers()))
    assert not any(value.isnan().any() for value in module.buffers() if value.is_floating_point())


def test_weights_are_the_pages_of_the_file(folder: Path) -> None:
    module = build(read_config(folder), torch.float32)
    checkpoint = Checkpoint(folder)
    for _ in fill(module, checkpoint):
        pass
    name = "model.layers.0.self_attn.q_proj.weight"
    assert module.get_parameter(name).data_ptr() == checkpoint[name].data_ptr()


def test_tensors_that_the_model_does_not_know_are_left_out(folder: Path, tmp_path: Path) -> None:
    tensors = load((folder / "model.safetensors").read_bytes()) | {"vision_tower.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert GreedyPath(tmp_path).tokens(PROMPT, 8) == GreedyPath(folder).tokens(PROMPT, 8)


def test_missing_experts_are_noticed(tmp_path: Path) -> None:
    make_model("mixtral", tmp_path)
    tensors = load((tmp_path / "model.safetensors").read_bytes())
    del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    module = build(read_config(tmp_path), torch.float32)
    with pytest.raises(ModelUnreadable):
        list(fill(module, Checkpoint(tmp_path)))


def test_a_pass_gives_the_last_logits_asked_for(path: GreedyPath) -> None:
    whole = path.model.forward(PROMPT, path.cache, keep=len(PROMPT))
    path.cache.reset()
    last = path.model.forward(PROMPT, path.cache)
    assert whole.shape[0] == len(PROMPT)
    assert last.shape == whole[-1:].shape
    assert torch.allclose(last, whole[-1:], atol=1e-4)
    assert path.cache.tokens == PROMPT


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_pass_that_is_stopped_leaves_the_cache_as_it_was(path: GreedyPath, layer: int) -> None:
    path.model.forward(PROMPT[:10], path.cache)
    questions = iter(range(1, 100))
    with pytest.raises(ForwardStopped):
        path.model.forward(PROMPT[10:], path.cache, lambda: next(questions) >= layer)
    assert path.cache.tokens == PROMPT[:10]
    again = path.model.forward(PROMPT[10:], path.cache)
    path.cache.reset()
    path.model.forward(PROMPT[:10], path.cache)
    assert torch.equal(again, path.model.forward(PROMPT[10:], path.cache))


def test_a_recurrent_model_that_is_stopped_begins_anew(tmp_path: Path) -> None:
    path = GreedyPath(make_model("qwen3_next", tmp_path))
    path.model.forward(PROMPT[:10], path.cache)
    with pytest.raises(ForwardStopped):
        path.model.forward(PROMPT[10:], path.cache, lambda: True)
    assert path.cache.tokens == [], "its states hold half of the pass and cannot be cut back"
    assert path.tokens(PROMPT, 8) == GreedyPath(tmp_path).tokens(PROMPT, 8)
