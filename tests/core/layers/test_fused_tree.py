"""Replaced forwards of a whole tree: all of them are taken back, and come again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from torch import nn

from core.kernels.native_abi import instruction_sets
from core.layers import experts_beside, fused_tree
from core.layers.latent_attention import EXPANSION
from core.model.blueprint import decoder_layers
from tests.core.families import make_model
from tests.core.greedy import OPTIONS, GreedyPath

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
KINDS = {
    "qwen3_5_moe_text": {"FusedBlock", "FusedForward", "FusedRecurrent", "FusedMixture", "FusedRouter"},
    "llama4_text": {"FusedForward", "FusedMixture", "FusedRouter"},
    "gemma4_text": {"FusedForward", "FusedMixture", "FusedRouter"},
    "deepseek_v2": {"FusedLatent", "FusedMixture", "FusedRouter", "Expansion"},
}
"""What is replaced in each kind: together all that can be."""


def replaced(root: nn.Module, places: Sequence[str]) -> Counter[str]:
    """Count the replacements in these attributes of all modules, by their types; rotary angles' are functions."""
    found = (vars(module)[place] for module in root.modules() for place in places if place in vars(module))
    return Counter(type(one).__name__ for one in found if not isinstance(one, FunctionType))


@pytest.mark.parametrize("give_back", [fused_tree.release, fused_tree.take])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_adopted_is_given_back(kind: str, give_back: Callable[..., Any], tmp_path: Path) -> None:
    make_model(kind, tmp_path)
    root = GreedyPath(tmp_path, replace(OPTIONS, format="int8")).module
    layers, forwards = decoder_layers(root), ("forward", experts_beside.TOGETHER)
    before = replaced(root, (*forwards, EXPANSION))
    assert before.keys() == KINDS[kind]
    give_back(root, layers)
    assert not replaced(root, forwards)
    fused_tree.adopt(root, layers)
    assert replaced(root, (*forwards, EXPANSION)) == before
