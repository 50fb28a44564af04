"""MTP heads in GGUF files draft the same as in safetensors, and change no token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.events import AUTO, LOOKUP, MTP, LoadOptions
from core.model.filling import fill
from core.model.model_source import open_source
from core.model.mtp import open_mtp
from core.runtime.drafting import OWN_HEAD
from tests.core.greedy import loaded_model, random_prompt
from tests.core.model.test_mtp import read_along
from tests.core.mtp_heads import add_mtp, make_predictable
from tests.core.runtime.drafted import said
from tests.core.tiny_tokenizer import write_tokenizer
from tests.core.weights.gguf.tiny_gguf import MODELS, VOCABULARY, make_model, write_gguf
from tests.core.weights.gguf.tiny_heads import head_tensors

WITH_HEADS = ("qwen35", "qwen35moe", "qwen3next", "glm4moe", "deepseek2", "deepseek2-mla")
OPTIONS = LoadOptions(context=512, threads=1, format="bf16")
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def checkpoint(name: str, folder: Path) -> Path:
    """Make the tiny model of this name with a head, in safetensors."""
    make_model(name).save_pretrained(folder)
    return add_mtp(write_tokenizer(folder), MODELS[name][1])


def as_gguf(name: str, folder: Path, kind: Any = None) -> Path:
    """Convert the model in `folder` and its head to one file."""
    head = open_mtp(open_source(folder))
    assert head is not None
    for _ in fill(head.module, head.weights):
        pass
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    behind = head_tensors(name, head.module.state_dict(), model.config)
    return write_gguf(name, model, folder.with_suffix(".gguf"), kind, behind=behind)


def drafts(path: Path, ids: list[int], count: int) -> list[int]:
    """Return a head's most likely continuation of `ids`."""
    model, cache, reading = read_along(path)
    model.forward(ids[:-1], cache)
    scores = reading.read(ids)
    assert scores is not None
    found = [int(scores.argmax())]
    while len(found) < count:
        found.append(int(reading.step(found[-1:]).argmax()))
    return found


@pytest.mark.parametrize("name", WITH_HEADS)
def test_a_head_in_a_file_drafts_and_says_what_it_does_in_safetensors(name: str, tmp_path: Path) -> None:
    folder, ids = checkpoint(name, tmp_path / "m"), random_prompt(40)
    file = as_gguf(name, folder)
    expected = drafts(folder, ids, 6)
    assert len(set(expected)) > 2, "a head that repeats itself proves nothing"
    assert drafts(file, ids, 6) == expected
    plain = loaded_model(folder, OPTIONS)
    drafted = loaded_model(file, replace(OPTIONS, draft=MTP))
    found, ahead = said(drafted, ids, 40)
    assert found == said(plain, ids, 40)[0]
    assert ahead.drafted > 0


@pytest.mark.parametrize("name", ["qwen35", "glm4moe"])
def test_a_quantised_head_stays_as_the_file_has_it_and_drafts(name: str, tmp_path: Path) -> None:
    folder = make_predictable(checkpoint(name, tmp_path / "m"), MODELS[name][1])
    file = as_gguf(name, folder, Q8_0)
    head = open_mtp(open_source(file))
    assert head is not None
    assert {"model.join.eh_proj", "model.layers.0.self_attn.q_proj", "lm_head"} <= head.stored.keys()
    assert set(head.stored.values()) == {"int8g32"}
    assert "model.embed_tokens.weight" in head.tables_in_file
    model = loaded_model(file, replace(OPTIONS, draft=MTP))
    prompt = random_prompt(30)
    found, ahead = said(model, prompt, 40)
    assert found == [(prompt[-1] + 1 + place) % VOCABULARY for place in range(40)]
    assert ahead.drafter == OWN_HEAD
    assert ahead.taken == ahead.drafted > 0


def test_a_head_in_a_file_is_found_by_itself_and_left_where_it_is_not_wanted(tmp_path: Path) -> None:
    file = as_gguf("glm4moe", checkpoint("glm4moe", tmp_path / "m"))
    found = loaded_model(file, replace(OPTIONS, draft=AUTO))
    assert found.draft is None or found.draft.name == OWN_HEAD
    assert loaded_model(file, replace(OPTIONS, draft=LOOKUP)).draft is None


def test_a_file_without_a_head_has_none(tmp_path: Path) -> None:
    assert open_mtp(open_source(write_gguf("qwen35", make_model("qwen35"), tmp_path / "m.gguf"))) is None


def test_a_head_of_unknown_parts_is_none(tmp_path: Path) -> None:
    """The model works without it."""
    name = "glm4moe"
    folder = checkpoint(name, tmp_path / "m")
    behind = {"blk.3.nextn.eh_proj.weight": torch.zeros(64, 128), "blk.3.attn_surprise.weight": torch.zeros(4, 32)}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert open_mtp(open_source(write_gguf(name, model, tmp_path / "m.gguf", behind=behind))) is None
