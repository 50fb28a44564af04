"""Extensions of positions beyond a model's original length, under the names used in checkpoints."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.__main__ import main
from core.commands import bench
from core.generation import generate, speculation
from core.layers.kv_parking import usable
from core.model.blueprint import config_from
from core.model.language_model import ForwardStopped
from tests.core.families import VOCABULARY, make_model, reference_tokens
from tests.core.greedy import OPTIONS, GreedyPath, loaded_model, random_prompt
from tests.core.runtime.drafted import draft_long, said
from tests.core.tiny_tokenizer import write_tokenizer

LONG: dict[str, Any] = {
    "factor": 4.0, "original_max_position_embeddings": 128, "short_factor": [1.0] * 8,
    "long_factor": [float(factor) for factor in range(1, 17, 2)],
}  # fmt: skip


SCALES = {"short_mscale": 1.1, "long_mscale": 1.4}
"""Of Phi-3.5 MoE: what multiplies the angles' cosines and sines in short and in long texts; the same in published
ones."""


def stretched(folder: Path, scaling: dict[str, Any], family: str = "llama") -> Path:
    make_model(family, folder, max_position_embeddings=2048)
    content = json.loads((folder / "config.json").read_text("utf-8"))
    del content["rope_parameters"]
    scaling = scaling | SCALES if family == "phimoe" else scaling
    content |= {"rope_theta": 10000.0, "rope_scaling": scaling}
    if family in ("phi3", "phimoe"):
        content["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("length", [60, 110, 190])
def test_two_sets_of_frequencies_on_the_first_load(length: int, tmp_path: Path) -> None:
    """Below, across, and beyond the original length, without an earlier survey of the model."""
    folder = stretched(tmp_path, {"type": "longrope", **LONG})
    prompt = random_prompt(length)
    assert GreedyPath(folder).tokens(prompt, 40) == reference_tokens(folder, prompt, 40)


@pytest.mark.parametrize("family", ["phi3", "phimoe", "llama"])
def test_turns_across_the_original_length_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Phi-3 reads its text anew where it becomes long; others go on, and a later turn is read anew."""
    folder = stretched(tmp_path, {"type": "longrope", **LONG}, family)
    path, prompt = GreedyPath(folder), random_prompt(110)
    first = path.tokens(prompt, 40)
    longer = [*prompt, *first, *random_prompt(15, seed=7)]
    for text in (longer, [*longer[:140], 9, 8], [*longer[:90], 9, 8], longer):
        assert path.tokens(text, 24) == reference_tokens(folder, text, 24)
    assert first == reference_tokens(folder, prompt, 40)


@pytest.mark.parametrize("family", ["phi3", "phimoe"])
def test_a_long_text_is_read_in_parts_with_one_set_of_frequencies(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 16)
    folder = stretched(tmp_path, {"type": "longrope", **LONG}, family)
    path, prompt = GreedyPath(folder), random_prompt(190)
    assert path.tokens(prompt, 24) == reference_tokens(folder, prompt, 24)
    assert path.tokens(prompt[:60], 24) == reference_tokens(folder, prompt[:60], 24)


def test_the_reply_that_is_measured_is_that_of_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its prompt becomes long in its second pass."""
    scaling = {"type": "longrope", **LONG, "original_max_position_embeddings": 550}
    folder, draw = write_tokenizer(stretched(tmp_path, scaling, "phi3")), random.Random(bench.SEED)
    given = [
        "--prompt-tokens",
        "600",
        "--new-tokens",
        "8",
        "--context",
        "1024",
        "--threads",
        "1",
        "--format",
        "bf16",
        "--json",
    ]
    assert main(["bench", str(folder), *given]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = reference_tokens(tmp_path, [draw.randrange(VOCABULARY) for _ in range(600)], 8)
    assert found["output_sha256"] == hashlib.sha256(repr(tuple(expected)).encode()).hexdigest()


def test_the_read_part_of_a_long_text_is_no_short_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 16)
    folder = stretched(tmp_path, {"type": "longrope", **LONG}, "phi3")
    path, prompt = GreedyPath(folder), random_prompt(190)
    reading = generate.generate(
        path.model, path.cache, prompt, lambda logits, _: int(logits.argmax()), lambda: len(path.cache.tokens) >= 64
    )
    with pytest.raises(ForwardStopped):
        list(reading)
    assert path.tokens(prompt[:90], 24) == reference_tokens(folder, prompt[:90], 24)


@pytest.mark.parametrize("family", ["phi3", "phimoe", "llama"])
def test_drafts_end_where_a_text_becomes_long(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft_long(monkeypatch)
    monkeypatch.setattr(speculation, "WORTHWHILE", 0.0)  # drafts never rest, however long they took
    folder = write_tokenizer(stretched(tmp_path, {"type": "longrope", **LONG}, family))
    prompt = random_prompt(100)
    found, ahead = said(loaded_model(folder, replace(OPTIONS, draft="self")), prompt, 60)
    assert found == reference_tokens(folder, prompt, 60)
    assert ahead.drafted


def test_parked_states_serve_texts_of_the_same_frequencies_only(tmp_path: Path) -> None:
    cache = GreedyPath(stretched(tmp_path, {"type": "longrope", **LONG}, "phi3")).cache
    text = random_prompt(190)
    assert [usable(cache, text[:held], text[:asked], 0) for held, asked in ((100, 128), (100, 129), (129, 100))] == [
        100, 0, 0,
    ]  # fmt: skip


def test_dynamic_positions_are_plain_ones_in_the_context(tmp_path: Path) -> None:
    folder = stretched(tmp_path, {"type": "dynamic", "factor": 4.0})
    prompt = random_prompt(190)
    assert GreedyPath(folder).tokens(prompt, 24) == reference_tokens(folder, prompt, 24)


def test_dynamic_positions_with_a_fixed_factor_are_stretched() -> None:
    raw = {"model_type": "hunyuan_v1_dense", "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}}
    assert config_from(raw).rope_parameters["rope_type"] == "dynamic"


@pytest.mark.parametrize("scaling", [{"type": "su"}, {"rope_type": "su"}])
def test_an_older_name_is_the_same_way(scaling: dict[str, Any], tmp_path: Path) -> None:
    older = stretched(tmp_path / "older", scaling | LONG)
    today = stretched(tmp_path / "today", {"type": "longrope", **LONG})
    prompt = random_prompt(190)
    assert GreedyPath(older).tokens(prompt, 24) == reference_tokens(today, prompt, 24)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_vl", "qwen2_5_vl"])
def test_positions_in_three_parts_are_plain_ones_for_text(kind: str) -> None:
    scaling = {"type": "mrope", "mrope_section": [16, 24, 24]}
    text = {"hidden_size": 64, "num_attention_heads": 4, "rope_scaling": scaling}
    raw = {"model_type": kind, **text} if kind == "qwen2" else {"model_type": kind, "text_config": text}
    config = config_from(raw).get_text_config()
    assert config.rope_parameters["rope_type"] == "default"
