"""MTP heads are read from checkpoints and give the scores of transformers' own heads with the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from core.generation.mtp_drafter import MtpReading
from core.hardware.machine import assume_machine
from core.layers.kv_cache import KVCache
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import Source, open_source
from core.model.mtp import join_of, open_mtp
from core.model.placement import HostPlacement
from core.model.trace import survey
from tests.core.families import make_model
from tests.core.greedy import random_prompt
from tests.core.mtp_heads import LAYOUTS, add_mtp


def exact_model(source: Source) -> LanguageModel:
    """Load a model with its weights as stored, as the engine does."""
    for _ in fill(source.module, source.weights):
        pass
    weights = HostWeights(source, survey(source.module), "bf16", assume_machine(None, 1).kernels, Path())
    for _ in weights.make():
        pass
    return LanguageModel(source.module, HostPlacement(source.module, weights))


def read_along(path: Path) -> tuple[LanguageModel, KVCache, MtpReading]:
    """Load a model with an empty cache, and what its own head makes of the states that it passes through."""
    source = open_source(path)
    head = open_mtp(source)
    assert head is not None
    model = exact_model(source)
    reading = MtpReading(exact_model(head), join_of(head.module), KVCache(head.module.config, 256))
    model.on_states = reading.see
    return model, KVCache(source.module.config, 256), reading


def our_scores(folder: Path, ids: list[int], chunk: int) -> Tensor:
    """Return the scores of the token after `ids`, of which the model reads all but the last, in parts."""
    model, cache, reading = read_along(folder)
    for start in range(0, len(ids) - 1, chunk):
        model.forward(ids[start : min(start + chunk, len(ids) - 1)], cache)
    scores = reading.read(ids)
    assert scores is not None
    return scores


def their_scores(folder: Path, ids: list[int]) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager").eval()
    # Settings of published configurations that only decide how transformers finds the layer.
    model.config.num_mtp_layers = 1
    for name, kind in (("layer_types", "full_attention"), ("mlp_layer_types", "sparse")):
        if getattr(model.config, name, None) is not None:
            setattr(model.config, f"mtp_{name}", [kind])
    if LAYOUTS[model.config.model_type] == "behind":
        vars(model)["_keys_to_ignore_on_load_unexpected"] = [rf"model\.layers\.{model.config.num_hidden_layers}.*"]
    head: Any = MtpModel.from_pretrained(model).eval()
    with torch.no_grad():
        states = model.model(torch.tensor([ids[:-1]])).last_hidden_state
        positions = torch.arange(1, len(ids)).unsqueeze(0)
        _, scores, _ = head(torch.tensor([ids[1:]]), states, None, positions, MtpCache(config=head.config))
    found: Tensor = scores[0, 0].float()
    return found


@pytest.mark.parametrize(("family", "chunk"), [*((one, 16) for one in LAYOUTS), ("qwen3_next", 64), ("glm4_moe", 3)])
def test_a_head_gives_the_scores_of_transformers(family: str, chunk: int, tmp_path: Path) -> None:
    folder, ids = add_mtp(make_model(family, tmp_path), family), random_prompt(40)
    expected, found = their_scores(folder, ids), our_scores(folder, ids, chunk)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert int(found.argmax()) == int(expected.argmax())


def test_a_model_without_a_head_has_none(tmp_path: Path) -> None:
    assert open_mtp(open_source(make_model("llama", tmp_path))) is None
