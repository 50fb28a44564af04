"""Models that cannot be run here are refused in sentences, before weights are read."""

from __future__ import annotations

import pytest
import torch

from core.errors import UnsupportedModel
from core.model.blueprint import build, config_from
from core.model.trace import survey
from tests.core.families import VOCABULARY


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
