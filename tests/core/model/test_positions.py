"""Extensions of positions beyond a model's original length, under the names used in checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.model.blueprint import config_from
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt

LONG: dict[str, Any] = {
    "factor": 4.0, "original_max_position_embeddings": 128, "short_factor": [1.0] * 8,
    "long_factor": [float(factor) for factor in range(1, 17, 2)],
}  # fmt: skip


def stretched(folder: Path, scaling: dict[str, Any]) -> Path:
    make_model("llama", folder, max_position_embeddings=2048)
    content = json.loads((folder / "config.json").read_text("utf-8"))
    del content["rope_parameters"]
    content |= {"rope_theta": 10000.0, "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("length", [60, 110, 190])
def test_two_sets_of_frequencies_on_the_first_load(length: int, tmp_path: Path) -> None:
    """Below, across, and beyond the original length, without an earlier survey of the model."""
    folder = stretched(tmp_path, {"type": "longrope", **LONG})
    prompt = random_prompt(length)
    assert GreedyPath(folder).tokens(prompt, 40) == reference_tokens(folder, prompt, 40)


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
