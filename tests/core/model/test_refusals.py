"""Models that cannot be run here are refused in sentences, before weights are read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.errors import UnsupportedModel
from core.model.blueprint import build, config_from
from core.model.trace import survey
from tests.core.families import FAMILIES, VOCABULARY


def test_experts_that_are_chosen_by_a_program_of_their_own() -> None:
    """LongCat's experts are a loop over those that its router has chosen, which has no end before there are values."""
    config = config_from({
        "model_type": "longcat_flash", "vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2,
        "num_attention_heads": 4, "ffn_hidden_size": 96, "q_lora_rank": 32, "kv_lora_rank": 16, "v_head_dim": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "head_dim": 8, "n_routed_experts": 4, "zero_expert_num": 2,
        "moe_topk": 2, "expert_ffn_hidden_size": 48,
    })  # fmt: skip
    with pytest.raises(UnsupportedModel) as refused:
        survey(build(config, torch.float32))
    assert refused.value.what == "A model of the kind 'longcat_flash' cannot be run here."
    assert refused.value.why == "It decides only while it runs what it computes, which cannot be planned."


def test_sizes_that_depend_on_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the padding of the tokens that GLM-5's indexer chooses."""
    module = build(CONFIG_MAPPING["llama"](**FAMILIES["llama"]), torch.float32)
    first = module.model.layers[0].mlp

    def padded(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, (x > 0).sum().item()))[..., : x.shape[-1]]

    monkeypatch.setattr(first, "forward", padded)
    with pytest.raises(UnsupportedModel) as refused:
        survey(module)
    assert refused.value.why == "It decides only while it runs what it computes, which cannot be planned."
