"""Fidelity: the engine computes the same as transformers, for every family, storage and order of reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from core.generation import generate
from core.layers import kv_layers
from core.weights.checkpoint import Checkpoint
from core.weights.weight_files import INDEX
from tests.core.families import EXPERT_FAMILIES, FAMILIES, RARER_FAMILIES, make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, pieces, random_prompt

LONG = ("llama", "gemma3_text", "qwen3_next")
RECURRENT = ("qwen3_next",)
MIXTURES = ("mixtral", "qwen3_moe", "qwen3_next")
PROMPT = random_prompt(50)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_model(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    count = 256 if family in LONG else 64
    expected = reference_tokens(folders[family], PROMPT, count)
    assert len(set(expected)) > 5, "a model that repeats itself proves nothing"
    assert GreedyPath(folders[family]).tokens(PROMPT, count) == expected


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_the_prompt_in_chunks_changes_nothing(folders: dict[str, Path], family: str) -> None:
    prompt = random_prompt(131, seed=6)
    assert GreedyPath(folders[family]).tokens(prompt, 64) == reference_tokens(folders[family], prompt, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_second_turn_reuses_every_cached_token(folders: dict[str, Path], family: str) -> None:
    path = GreedyPath(folders[family])
    reply = path.tokens(PROMPT, 20)
    cached = len(path.cache.tokens)
    assert cached == len(PROMPT) + len(reply) - 1  # the last token was drawn, but not read yet
    longer = [*PROMPT, *reply, *random_prompt(15, seed=7)]
    assert path.tokens(longer, 32) == reference_tokens(folders[family], longer, 32)
    assert path.reused == cached


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_turn_reuses_the_common_prefix(folders: dict[str, Path], family: str) -> None:
    path = GreedyPath(folders[family])
    path.tokens(PROMPT, 30)
    edited = [*PROMPT[:33], *random_prompt(12, seed=8)]
    assert path.tokens(edited, 32) == reference_tokens(folders[family], edited, 32)
    # Recurrent states cannot be cut back, and nothing before was marked, so that such a model reads the turn anew.
    assert path.reused == (0 if family in RECURRENT else 33)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_prompt_again_gives_the_same_tokens(folders: dict[str, Path], family: str) -> None:
    path = GreedyPath(folders[family])
    assert path.tokens(PROMPT, 24) == path.tokens(PROMPT, 24)
    assert path.reused == (0 if family in RECURRENT else len(PROMPT) - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    # With a wider spread, tiny models amplify bf16's rounding far more than trained ones.
    make_model(family, tmp_path, torch.bfloat16, seed=3, spread=0.05)
    prompt = random_prompt(256, seed=9)
    expected = _reference_logits(tmp_path, prompt)
    path = GreedyPath(tmp_path)
    whole = path.model.forward(prompt, path.cache, keep=len(prompt))
    path.cache.reset()
    chunked = torch.cat([path.model.forward(part, path.cache, keep=len(part)) for part in pieces(prompt, 64)])
    for logits in (whole, chunked):
        alike, said = torch.cosine_similarity(logits, expected, dim=-1), logits.argmax(-1) == expected.argmax(-1)
        if family in MIXTURES:
            # Not at every position: where another instruction set rounds differently, a router may choose another of
            # two nearly equal experts.
            assert alike.median() >= 0.9995
            assert said.float().mean() >= 0.95
        else:
            assert torch.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) >= 0.9999
            assert said.float().mean() >= 0.99


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("family", RARER_FAMILIES)
def test_rarer_families_over_two_turns_and_an_edit(tmp_path: Path, family: str) -> None:
    make_model(family, tmp_path)
    path = GreedyPath(tmp_path)
    first = path.tokens(PROMPT, 40)
    assert first == reference_tokens(tmp_path, PROMPT, 40)
    longer = [*PROMPT, *first, *random_prompt(15, seed=7)]
    assert path.tokens(longer, 32) == reference_tokens(tmp_path, longer, 32)
    edited = [*longer[:70], *random_prompt(12, seed=8)]
    assert path.tokens(edited, 32) == reference_tokens(tmp_path, edited, 32)


@pytest.mark.parametrize("family", RARER_FAMILIES | EXPERT_FAMILIES)
def test_weights_of_eight_bits_foretell_nearly_the_same(tmp_path: Path, family: str) -> None:
    make_model(family, tmp_path, spread=0.05)
    exact, rounded = (GreedyPath(tmp_path, replace(OPTIONS, format=format)) for format in ("auto", "int8"))
    expected, found = (path.model.forward(PROMPT, path.cache, keep=32) for path in (exact, rounded))
    # Not at every position: if two experts are nearly equal, rounding chooses the other one.
    assert torch.cosine_similarity(found, expected, dim=1).median() >= 0.95
    assert rounded.tokens([*PROMPT, 7], 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_half_precision_files_stay_as_they_are(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    make_model(family, tmp_path, dtype)
    path = GreedyPath(tmp_path)
    assert {value.dtype for value in path.module.parameters()} == {dtype}
    # Later tokens may differ: a single query row is computed with less rounding than in transformers.
    assert path.tokens(PROMPT, 8) == reference_tokens(tmp_path, PROMPT, 8)


@pytest.mark.parametrize("family", ["llama", "mixtral", "phi3"])
def test_sharded_files_are_one_model(tmp_path: Path, folders: dict[str, Path], family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[family], dtype="auto")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / INDEX).is_file()
    assert len(Checkpoint(tmp_path).files) > 2
    assert GreedyPath(tmp_path).tokens(PROMPT, 32) == GreedyPath(folders[family]).tokens(PROMPT, 32)


def test_tied_weights_are_one_tensor(folders: dict[str, Path]) -> None:
    stored = load((folders["llama"] / "model.safetensors").read_bytes())
    assert "lm_head.weight" not in stored
    module = GreedyPath(folders["llama"]).module
    assert module.lm_head.weight.data_ptr() == module.get_input_embeddings().weight.data_ptr()


def test_weights_are_mapped_not_copied(folders: dict[str, Path]) -> None:
    """If type and layout agree, the module computes with the file's own pages."""
    checkpoint = Checkpoint(folders["qwen2"])
    module: Any = GreedyPath(folders["qwen2"]).module
    weight = module.model.layers[0].self_attn.q_proj.weight
    assert not weight.is_meta
    assert torch.equal(weight, checkpoint["model.layers.0.self_attn.q_proj.weight"])


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_sliding_window_holds_over_several_windows(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exceeds window and slack together, so that the buffer is moved; then edits before what it holds."""
    monkeypatch.setattr(kv_layers, "SLIDING_SLACK", 40)
    path = GreedyPath(folders[family])
    prompt = random_prompt(300, seed=10)
    assert path.tokens(prompt, 64) == reference_tokens(folders[family], prompt, 64)
    edited = [*prompt[:100], *random_prompt(40, seed=11)]
    assert path.tokens(edited, 32) == reference_tokens(folders[family], edited, 32)
    assert path.reused == 0
    again = [*edited[:130], *random_prompt(20, seed=13)]
    assert path.tokens(again, 32) == reference_tokens(folders[family], again, 32)
    assert path.reused == 130


def _reference_logits(folder: Path, prompt: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0].float()
