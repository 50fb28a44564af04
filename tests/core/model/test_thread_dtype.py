"""A tree is built in its own dtype, and no other thread notices."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import modeling_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import LlamaMLP

from core.model import blueprint
from core.model.blueprint import build
from core.model.thread_dtype import DefaultDtype, building
from tests.core.families import FAMILIES, VOCABULARY

FLOAT, HALF = torch.float32, torch.bfloat16
XGLM = {
    "vocab_size": VOCABULARY, "d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
KINDS = FAMILIES | {"xglm": XGLM}
"""XGLM's positions are computed in the type that torch says is its default."""


def defaults() -> list[torch.dtype]:
    """Return the dtypes of what is made without one."""
    made = (torch.empty(1), torch.tensor(1.5), torch.arange(3) / 2, torch.full((1,), 0.5))
    return [torch.get_default_dtype(), *(each.dtype for each in made)]


def test_another_thread_keeps_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = list[torch.dtype](), list[torch.dtype]()
    original = LlamaMLP.__init__

    def looking(self: Any, config: Any) -> None:
        here.extend(defaults())
        other = threading.Thread(target=lambda: there.extend(defaults()))
        other.start()
        other.join()
        original(self, config)

    monkeypatch.setattr(LlamaMLP, "__init__", looking)
    build(CONFIG_MAPPING["llama"](**FAMILIES["llama"]), HALF)
    assert {*here} == {HALF}
    assert {*there} == {FLOAT}
    assert defaults() == [FLOAT] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_trees_are_those_that_transformers_builds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG_MAPPING[kind](**KINDS[kind])
    ours = values(build(deepcopy(config), HALF))
    monkeypatch.setattr(blueprint, "building", nullcontext)
    theirs = values(build(deepcopy(config), HALF))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert value.is_meta or torch.equal(value, theirs[name]), name


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def test_a_type_that_is_named_or_given_stays() -> None:
    given = torch.ones(2)
    with DefaultDtype(HALF):
        made = (torch.empty(1, dtype=FLOAT), torch.arange(3).float(), torch.arange(3).to(FLOAT), given * 2)
        joined = torch.cat([given, given])
    assert {each.dtype for each in (*made, joined)} == {FLOAT}


def test_a_type_that_cannot_be_a_default_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be built with"):
        DefaultDtype(torch.int8)


def test_one_thread_builds_at_a_time() -> None:
    begun, entered, left = threading.Event(), threading.Event(), list[bool]()

    def build_too() -> None:
        begun.set()
        with building():
            entered.set()

    before = modeling_utils.local_torch_dtype
    other = threading.Thread(target=build_too)
    with building():
        other.start()
        assert begun.wait(60)
        left.append(entered.wait(0.05))
    other.join()
    assert left == [False]
    assert modeling_utils.local_torch_dtype is before
