"""Models that keep their own attention: the log says which condition they do not meet."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.model.blueprint import build
from tests.core.families import RARER_FAMILIES


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("bloom", "its layers do not call the function that the configuration names"),
        ("bigbird_pegasus", "what is causal shows only in the masks of its eager attention"),
        ("deepseek_v4", "it keeps further state, and builds its own masks"),
        ("cohere", ""),
    ],
)
def test_the_log_tells_why(family: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG_MAPPING[family](**RARER_FAMILIES[family], is_encoder_decoder=False)
    with caplog.at_level(logging.INFO, "core.model.blueprint"):
        build(config, torch.float32)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ([told] if told else [])
