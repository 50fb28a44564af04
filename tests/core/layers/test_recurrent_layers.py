"""Recurrent layers call our functions where these agree, and transformers' where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.lfm2 import modeling_lfm2

from core.kernels.native_abi import instruction_sets
from core.layers import fused_recurrent, recurrent_layers
from core.layers.recurrent_layers import MARK, NAMES, RecurrentFunctions
from tests.core.families import make_model, reference_tokens
from tests.core.greedy import GreedyPath, random_prompt

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
CONVOLUTION = {"causal_conv1d_update", "causal_conv1d_fn"}
DELTA_RULE = {"torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"}
MAMBA_2 = {"mamba2_selective_state_update", "mamba2_chunk_scan"}
REPLACED = {
    "qwen3_next": CONVOLUTION | DELTA_RULE, "qwen3_5_text": CONVOLUTION | DELTA_RULE, "lfm2": CONVOLUTION,
    "bamba": CONVOLUTION | MAMBA_2, "mamba2": CONVOLUTION | MAMBA_2, "nemotron_h": CONVOLUTION | MAMBA_2,
    "falcon_h1": CONVOLUTION | MAMBA_2,
}  # fmt: skip
PROMPT = random_prompt(100)


def replaced(root: nn.Module) -> set[str]:
    """Return the names of our functions that some layer calls."""
    forwards = [getattr(module.forward, "own", module.forward) for module in root.modules()]
    scopes = [getattr(getattr(forward, "__func__", None), "__globals__", {}) for forward in forwards]
    ours = [scope for scope in scopes if MARK in scope]
    return {name for scope in ours for name in NAMES if hasattr(scope.get(name), "__self__")}


def count_calls(monkeypatch: pytest.MonkeyPatch, names: set[str]) -> list[str]:
    """Record the names of transformers' functions that are called instead of ours."""
    called: list[str] = []

    def refuse(name: str) -> Any:
        return lambda *args, **kwargs: called.append(name)

    own = RecurrentFunctions.__init__

    def made(self: RecurrentFunctions, library: Any, theirs: Any, convolution: Any) -> None:
        own(self, library, {name: refuse(name) for name in names}, convolution)

    monkeypatch.setattr(RecurrentFunctions, "__init__", made)
    return called


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", REPLACED)
def test_the_functions_of_these_families_are_ours(
    tmp_path: Path, family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(family, tmp_path, dtype)
    called = count_calls(monkeypatch, REPLACED[family])
    path = GreedyPath(tmp_path)
    assert replaced(path.module) == REPLACED[family]
    path.tokens(PROMPT, 4)
    assert not called, "ours take all that these layers ask for"
    fused_recurrent.release(path.module)
    recurrent_layers.release(path.module)
    assert not replaced(path.module)


@pytest.mark.parametrize("family", REPLACED)
def test_a_long_reply_is_that_of_transformers(tmp_path: Path, family: str) -> None:
    """Prefill in two passes, decode token by token, and continue anew from a mark near the prompt's end."""
    make_model(family, tmp_path, seed=4)
    expected = reference_tokens(tmp_path, PROMPT, 80)
    path = GreedyPath(tmp_path)
    assert path.tokens(PROMPT, 80) == expected
    assert path.tokens(PROMPT, 80) == expected
    assert path.reused == len(PROMPT) - 8


def test_a_function_that_computes_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_lfm2.causal_conv1d_update

    def doubled(*args: Any, **kwargs: Any) -> Any:
        return 2 * own(*args, **kwargs)

    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_update", doubled)
    make_model("lfm2", tmp_path)
    assert replaced(GreedyPath(tmp_path).module) == {"causal_conv1d_fn"}
