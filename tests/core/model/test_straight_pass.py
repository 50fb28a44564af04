"""Passes without transformers' own forward: the same logits bit for bit, and only where a model does nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.events import LoadOptions
from core.kernels.native_abi import instruction_sets
from core.layers.fused_forward import one_by_one
from core.layers.kv_cache import KVCache
from core.model.blueprint import decoder_layers
from core.model.language_model import ForwardStopped
from core.model.straight_layers import LayersApart, Rotary
from core.model.watched_pass import watched
from core.runtime import rehearsal
from core.spec import KvFormat
from tests.core.families import reference_tokens
from tests.core.greedy import GreedyPath, random_prompt
from tests.core.layers.fused import PROMPT, load
from tests.core.model.test_positions import LONG, stretched

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
PARTS = [[4], PROMPT[:3], [9], PROMPT[:8], PROMPT[:2], [7], PROMPT * 2]
ORDINARY = [2 * len(PROMPT)]
"""The passes of PARTS that have too many rows."""
MIXED = [
    "qwen3_next", "qwen3_5_moe_text", "granitemoehybrid", "falcon_h1", "lfm2", "lfm2_moe", "bamba", "nemotron_h",
    "kimi_linear", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3",
]  # fmt: skip
"""Families whose layers have recurrent states, or compressed keys and values, and are no run."""
FACTORS = {"embedding_multiplier": 3.0, "logits_scaling": 7.0}


def count_forwards(path: GreedyPath) -> list[int]:
    """Record the tokens of each call of transformers' own forward from now on."""
    counted: list[int] = []
    own = path.module.forward

    def counting(**kwargs: Any) -> Any:
        counted.append(kwargs["input_ids"].shape[1])
        return own(**kwargs)

    path.module.forward = counting
    return counted


def logits(path: GreedyPath, cache: KVCache, parts: Sequence[Sequence[int]] = PARTS) -> list[Tensor]:
    return [path.model.forward(part, cache, keep=len(part)) for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "mixtral", "qwen3_moe", "qwen2_moe"])
def test_the_same_logits_without_the_own_forward(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = load(family, tmp_path, "int8", dtype)
    ordinary, cache = (KVCache(path.module.config, 256) for _ in range(2))
    expected = logits(path, ordinary, [PROMPT, *PARTS])
    path.model.rehearse("bf16")
    forwards = count_forwards(path)
    found = logits(path, cache, [PROMPT, *PARTS])
    assert forwards == [len(PROMPT), *ORDINARY]
    assert all(map(torch.equal, found, expected))
    assert all(one.length == len(cache.tokens) for one in cache.layers)


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_the_same_logits_after_a_cut_and_in_another_cache(format: KvFormat, tmp_path: Path) -> None:
    path = load("llama", tmp_path)
    path.model.rehearse(format)
    caches = [KVCache(path.module.config, 256, format=format) for _ in range(2)]
    for cache in caches:
        logits(path, cache, [PROMPT, *PARTS])
    forwards = count_forwards(path)
    for cache in caches:
        cache.rewind(len(PROMPT))
    first, second = (logits(path, cache) for cache in caches)
    assert forwards == [*ORDINARY, *ORDINARY]
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_layers_with_windows_see_the_same_tokens(family: str, format: KvFormat, tmp_path: Path) -> None:
    """Windows of 24 tokens, in some families only in every other layer, which may have angles of its own."""
    path = load(family, tmp_path)
    parts = [PROMPT, *PARTS[:-1], *([id] for id in PROMPT), *PARTS]
    ordinary, cache = (KVCache(path.module.config, 256, format=format) for _ in range(2))
    expected = logits(path, ordinary, parts)
    path.model.rehearse(format)
    forwards = count_forwards(path)
    found = logits(path, cache, parts)
    assert forwards == [len(PROMPT), *ORDINARY]
    assert all(map(torch.equal, found, expected))


def test_positions_beyond_the_original_length_have_their_frequencies(tmp_path: Path) -> None:
    prompt = random_prompt(110)
    path = GreedyPath(stretched(tmp_path, {"type": "longrope", **LONG}), LoadOptions(format="int8", threads=1))
    expected = path.tokens(prompt, 40)
    path.cache.reset()
    path.model.rehearse("bf16")
    forwards = count_forwards(path)
    assert path.tokens(prompt, 40) == expected
    assert forwards == [len(prompt)]


@pytest.mark.parametrize(("family", "changes"), [
    *((family, {}) for family in MIXED),
    ("granite", FACTORS),
    ("granitemoehybrid", FACTORS),
    ("falcon_h1", {"embedding_multiplier": 3.0, "lm_head_multiplier": 0.3}),
    ("minicpm3", {"hidden_size": 64, "dim_model_base": 24}),
])  # fmt: skip
def test_layers_of_all_kinds_are_given_what_the_own_forward_gives(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = load(family, tmp_path, "int8", **changes)
    ordinary, cache = (KVCache(path.module.config, 256) for _ in range(2))
    expected = logits(path, ordinary, [PROMPT, *PARTS])
    path.model.rehearse("bf16")
    forwards = count_forwards(path)
    found = logits(path, cache, [PROMPT, *PARTS])
    assert forwards == [len(PROMPT), *ORDINARY]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("family", MIXED)
def test_the_tokens_of_transformers_in_32_bits(family: str, tmp_path: Path) -> None:
    path = load(family, tmp_path, "bf16", torch.float32)
    path.model.rehearse("bf16")
    forwards = count_forwards(path)
    assert path.tokens(PROMPT, 24) == reference_tokens(tmp_path, PROMPT, 24)
    assert forwards == [len(PROMPT)]


@pytest.mark.parametrize("family", ["qwen3_next", "granitemoehybrid"])
def test_recurrent_states_go_back_to_a_mark(family: str, tmp_path: Path) -> None:
    path = load(family, tmp_path)
    path.model.rehearse("bf16")
    path.model.forward(PROMPT, path.cache)
    path.model.mark(path.cache)
    forwards = count_forwards(path)
    first = logits(path, path.cache, PARTS[:-1])
    assert path.cache.rewind(len(PROMPT)) == len(PROMPT)
    assert all(map(torch.equal, logits(path, path.cache, PARTS[:-1]), first))
    assert not forwards


@pytest.mark.parametrize(("family", "changes"), [
    ("gpt2", {}),
    ("gemma3_text", {"final_logit_softcapping": 5.0}),
    ("jamba", {}),
])  # fmt: skip
def test_what_a_model_does_besides_is_not_left_out(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Embedded positions, logits that are squeezed, states that cannot be read in parts."""
    path = load(family, tmp_path, "int8", **changes)
    path.model.rehearse("bf16")
    cache = KVCache(path.module.config, 256)
    forwards = count_forwards(path)
    logits(path, cache, [PROMPT, *PARTS])
    assert forwards == [len(part) for part in (PROMPT, *PARTS)]


@pytest.mark.parametrize("argument", ["attention_mask", "position_embeddings", "position_ids", "cache"])
def test_an_argument_that_a_pass_does_not_offer_is_noticed(argument: str, tmp_path: Path) -> None:
    path = load("deepseek_v3", tmp_path)
    cache, own = KVCache(path.module.config, 256), decoder_layers(path.module)
    path.model.forward(PROMPT, cache)
    apart = LayersApart(own, [], Rotary(path.module, path.module.model))
    with torch.inference_mode():
        offer = apart.offer(torch.zeros(1, 3, 64, dtype=torch.bfloat16), cache)
    with watched(path.module, own, path.module.model.norm) as seen:
        path.model.forward(PROMPT[:3], cache)
    given = [dict(one) for one in seen.calls]
    assert apart.learn(given, offer, cache)
    given[1] |= {argument: {"of": given[1][argument]}}
    assert not apart.learn(given, offer, cache)


def test_layers_that_are_to_be_computed_apart_are(tmp_path: Path) -> None:
    path = rehearsed(tmp_path)
    forwards = count_forwards(path)
    with one_by_one(path.model.placement.runs):
        logits(path, path.cache)
    assert forwards == [len(part) for part in PARTS]


def test_states_that_somebody_listens_to_come_from_the_own_forward(tmp_path: Path) -> None:
    path, heard = rehearsed(tmp_path), list[int]()
    path.model.on_states = lambda ids, states: heard.append(len(states))
    logits(path, path.cache)
    assert heard == [len(part) for part in PARTS]


def test_a_straight_pass_is_stopped_before_it_begins(tmp_path: Path) -> None:
    path = rehearsed(tmp_path)
    with pytest.raises(ForwardStopped):
        path.model.forward([4], path.cache, lambda: True)
    assert path.cache.tokens == PROMPT


def test_a_model_that_is_not_rehearsed_does_not_go_straight(tmp_path: Path) -> None:
    path = load("llama", tmp_path)
    forwards = count_forwards(path)
    path.model.forward(PROMPT, path.cache)
    logits(path, path.cache)
    assert forwards == [len(part) for part in (PROMPT, *PARTS)]


def test_a_load_rehearses_models_of_the_sizes_that_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not straight(load("llama", tmp_path / "small"))
    monkeypatch.setattr(rehearsal, "LEAST_BYTES", 0)
    assert straight(load("llama", tmp_path / "right"))
    monkeypatch.setattr(rehearsal, "MOST_BYTES", 1)
    assert not straight(load("llama", tmp_path / "large"))


def straight(path: GreedyPath) -> bool:
    return path.model.placement.straight is not None and path.model.placement.straight.proven


def rehearsed(folder: Path) -> GreedyPath:
    """Return a model whose passes go straight, after a prompt."""
    path = load("llama", folder)
    path.model.rehearse("bf16")
    path.model.forward(PROMPT, path.cache)
    return path
