"""Vision and audio models chat with their language model: the same tokens, and nothing else is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from core.errors import UnsupportedModel
from core.model.blueprint import build, config_from
from core.model.model_source import open_source
from core.model.trace import survey
from tests.core.composite import OWN_CLASS, make_composite
from tests.core.greedy import GreedyPath, random_prompt, transformers_tokens

PROMPT = random_prompt(12)
TOWERS = ("vision", "visual", "audio", "image", "multi_modal", "connector", "vit")


@pytest.mark.parametrize("kind", OWN_CLASS)
def test_text_is_that_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    model = make_composite(kind, tmp_path)
    if kind == "llama4":  # transformers' complete model does not answer without a picture
        model = model.language_model
    path = GreedyPath(tmp_path)
    assert path.tokens(PROMPT, 16) == transformers_tokens(model, PROMPT, 16)
    assert not [name for name, _ in path.module.named_parameters() if any(tower in name for tower in TOWERS)]


def test_towers_are_not_counted(tmp_path: Path) -> None:
    model = make_composite("llava", tmp_path)
    spec = survey(open_source(tmp_path).module)
    language = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    assert spec.parameters == sum(value.numel() for value in language)


def test_a_fine_tune_of_the_language_model_alone_is_one(tmp_path: Path) -> None:
    """Saved as the text-only class under the complete model's name, with the weight names of that class."""
    whole = make_composite("qwen3_5", tmp_path)
    tensors = load((tmp_path / "model.safetensors").read_bytes())
    text = {name.replace("language_model.", ""): value for name, value in tensors.items() if "visual" not in name}
    save_file(text, tmp_path / "model.safetensors", metadata={"format": "pt"})
    change_config(tmp_path, architectures=["Qwen3_5ForCausalLM"])
    assert GreedyPath(tmp_path).tokens(PROMPT, 8) == transformers_tokens(whole, PROMPT, 8)


@pytest.mark.parametrize("kind", ["t5gemma2", "clip", "pix2struct"])
def test_what_cannot_chat_says_so(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match="cannot chat"):
        build(config_from({"model_type": kind}), torch.float32)


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text("utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
