"""Gemma 4's assistant, read by us and by transformers' own drafting."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma4AssistantForCausalLM
from transformers.generation.candidate_generator import SinglePositionMultiTokenCandidateGenerator

from core.errors import BadRequest, HeteGenError, ModelUnreadable, UnsupportedModel
from core.generation.assistant_drafter import AssistantReading
from core.layers.kv_cache import KVCache
from core.model.assistant import ORDERING, open_assistant
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.spec import KvFormat
from tests.core.assistants import (
    ALIKE,
    CLUSTERS,
    EXPERTS,
    SHARED,
    change_config,
    make_assistant,
    make_target,
)
from tests.core.families import make_model
from tests.core.greedy import random_prompt
from tests.core.model.test_mtp import exact_model
from tests.core.tiny_tokenizer import VOCABULARY

COUNT = 6


def read_along(target: Path, assistant: Path, kv: KvFormat = "bf16") -> tuple[LanguageModel, KVCache, AssistantReading]:
    """Fill both models, exactly; return the target, its cache and its assistant's reading."""
    source = open_source(target)
    own = open_assistant(str(assistant), source)
    assert own is not None
    model = exact_model(source)
    reading = AssistantReading(exact_model(own), model)
    model.on_states = reading.see
    return model, KVCache(source.module.config, 512, format=kv), reading


def chain(reading: AssistantReading, cache: KVCache, ids: list[int]) -> tuple[list[int], Tensor]:
    """Return the most likely draft after `ids`, and the scores (COUNT, vocabulary) of its tokens."""
    assert reading.begin(ids, cache)
    told, scores = list(ids), list[Tensor]()
    for _ in range(COUNT):
        scores.append(reading.step(told[-1]))
        told.append(int(scores[-1].argmax()))
    reading.end()
    return told[len(ids) :], torch.stack(scores)


def expected_chain(target: Path, assistant: Path, ids: list[int]) -> tuple[list[int], Tensor]:
    """Return the same by transformers' own candidate generator after a pass over all ids except the last."""
    model = AutoModelForCausalLM.from_pretrained(target).eval()
    own = Gemma4AssistantForCausalLM.from_pretrained(assistant).eval()
    own.generation_config.num_assistant_tokens = COUNT
    model.generation_config.max_length = 1024
    drafts = SinglePositionMultiTokenCandidateGenerator(own, model.get_input_embeddings(), model.generation_config)
    with torch.no_grad():
        read: Any = model(
            torch.tensor([ids[:-1]]), use_cache=False, output_hidden_states=True, return_shared_kv_states=True
        )
        told, scores = drafts.get_candidates(torch.tensor([ids]), {}, read, False, 0)
    assert scores is not None
    return told[0, len(ids) :].tolist(), scores[0]


@pytest.mark.parametrize(
    ("kind", "head"),
    [(EXPERTS, {}), (SHARED, {}), (ALIKE, {}), (EXPERTS, CLUSTERS)],
    ids=["experts", "shared", "alike", "clusters"],
)
@pytest.mark.parametrize("length", [12, 70], ids=["short", "beyond the window"])
def test_drafts_and_scores_are_those_of_transformers(
    kind: str, head: dict[str, Any], length: int, tmp_path: Path
) -> None:
    target, assistant = make_target(tmp_path / "t", kind), make_assistant(tmp_path / "a", kind, **head)
    ids = random_prompt(length)
    expected, scores = expected_chain(target, assistant, ids)
    model, cache, reading = read_along(target, assistant)
    model.forward(ids[:-1], cache)
    drafted, ours = chain(reading, cache, ids)
    assert len(set(expected)) > 1, "a draft that repeats itself proves little"
    assert drafted == expected
    known = ours.isfinite()
    assert known.sum() == COUNT * (80 if head else VOCABULARY)
    torch.testing.assert_close(ours[known], scores[known], rtol=1e-3, atol=1e-3)


def test_a_draft_depends_on_the_text_alone(tmp_path: Path) -> None:
    """Whatever was checked and taken back before: the text in parts, with wrong tokens in between."""
    target, assistant = make_target(tmp_path / "t"), make_assistant(tmp_path / "a")
    ids = random_prompt(60)
    model, cache, reading = read_along(target, assistant)
    model.forward(ids[:-1], cache)
    expected, _ = chain(reading, cache, ids)
    model, cache, reading = read_along(target, assistant)
    model.forward(ids[:50], cache)
    for start in range(50, 59, 3):
        model.forward([*ids[start : start + 3], 7, 8], cache, keep=5)
        cache.rewind(start + 3)
        assert reading.begin(ids[: start + 4], cache)
    assert chain(reading, cache, ids)[0] == expected


def test_there_is_no_draft_after_other_tokens(tmp_path: Path) -> None:
    model, cache, reading = read_along(make_target(tmp_path / "t"), make_assistant(tmp_path / "a"))
    ids = random_prompt(20)
    assert not reading.begin(ids, cache)
    model.forward(ids[:-1], cache)
    assert reading.begin(ids, cache)
    assert not reading.begin([*ids[:-2], 5, 6], cache)
    assert not reading.begin([*ids, 5], cache)


def test_keys_and_values_in_8_bits_are_read(tmp_path: Path) -> None:
    target, assistant = make_target(tmp_path / "t"), make_assistant(tmp_path / "a")
    ids = random_prompt(200)
    found = []
    for kv in ("bf16", "int8"):
        model, cache, reading = read_along(target, assistant, kv)
        model.forward(ids[:-1], cache)
        found.append(chain(reading, cache, ids)[1][0])
    exact, packed = found
    assert 0 < float((exact - packed).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize(
    ("made_for", "changes"),
    [(EXPERTS, {"backbone_hidden_size": 32}), (ALIKE, {})], ids=["another width", "other keys and values"],
)  # fmt: skip
def test_an_assistant_of_another_model_is_refused(made_for: str, changes: dict[str, Any], tmp_path: Path) -> None:
    target, assistant = make_target(tmp_path / "t"), make_assistant(tmp_path / "a", made_for, **changes)
    with pytest.raises(BadRequest, match="a cannot draft") as refused:
        open_assistant(str(assistant), open_source(target))
    assert refused.value.why == "It was made for a model of another size."


def test_an_assistant_is_refused_for_other_families_and_as_a_model(tmp_path: Path) -> None:
    assistant, llama = make_assistant(tmp_path / "a"), make_model("llama", tmp_path / "llama")
    with pytest.raises(BadRequest, match="a cannot draft") as refused:
        open_assistant(str(assistant), open_source(llama))
    assert "Gemma 4" in refused.value.why
    with pytest.raises(UnsupportedModel, match="cannot chat"):
        open_source(assistant)
    assert open_assistant(str(llama), open_source(llama)) is None


def opened(target: Path, assistant: Path) -> AssistantReading:
    return read_along(target, assistant)[2]


def test_damaged_assistants_are_refused(tmp_path: Path) -> None:
    target, assistant = make_target(tmp_path / "t"), make_assistant(tmp_path / "a", **CLUSTERS)
    opened(target, assistant)
    file = assistant / "model.safetensors"
    tensors = load(file.read_bytes())
    damaged: list[dict[str, Tensor]] = [
        {name: one for name, one in tensors.items() if name != ORDERING},
        {name: one for name, one in tensors.items() if name != "post_projection.weight"},
        tensors | {ORDERING: tensors[ORDERING] + 1},
    ]
    for number, wrong in enumerate(damaged):
        # Each in a folder of its own: Windows writes no file that is mapped.
        copy = Path(shutil.copytree(assistant, tmp_path / f"damaged-{number}"))
        (copy / file.name).unlink()
        save_file(wrong, copy / file.name, {"format": "pt"})
        with pytest.raises(ModelUnreadable):
            opened(target, copy)
    change_config(assistant, num_centroids=33)
    with pytest.raises(ModelUnreadable, match="does not describe a model"):
        opened(target, assistant)
    change_config(assistant, num_centroids=20)
    cut = Path(shutil.copytree(assistant, tmp_path / "cut"))
    (cut / file.name).write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(HeteGenError):
        opened(target, cut)
