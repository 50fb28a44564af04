"""Gaps between graphs, for modules that the CPU shares, and the memory of graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.__main__ import main
from core.errors import NotEnoughMemory
from core.layers.kv_cache import KVCache
from core.model.captured_run import FIRST_PASSES
from core.model.captures import GraphUse
from core.planning.capture import MOST_ROWS
from tests.core.offload.test_hetero_linear import TOKENS, Bench
from tests.core.second_device import SecondCard, SecondDevice, put_in
from tests.core.second_device.placed import FEW_PLACES, GRAPHS, PLANS, Placed, around, launches, whole
from tests.core.tiny_tokenizer import chat_model

pytestmark = pytest.mark.skipif(not hasattr(torch.accelerator, "Graph"), reason="this torch has no graphs for all")

DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite", "gpt_neox", "gpt2", "smollm3")
"""Captured families whose MLPs are modules of their own."""
EXPERTS = ("mixtral", "qwen3_moe", "olmoe")


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("family", [*DENSE, *EXPERTS])
def test_same_tokens_where_all_mlps_are_divided(
    second: SecondDevice, card: SecondCard, tmp_path: Path, family: str
) -> None:
    """All layers are one run of graphs, which end where the CPU takes part. Half-way MLPs are split by columns."""
    bench = Bench(family, tmp_path, **FEW_PLACES.get(family, {}))
    first, last = around(bench.spec), around(bench.spec, paired=True)
    assert first.captured == last.captured == tuple(range(bench.spec.layers))
    assert len(first.gaps) == bench.spec.layers
    assert bench.run(first, last, card) == bench.expected
    assert second.get("replays") > (bench.spec.layers + 1) * (TOKENS // 2)


def test_work_between_mlps_is_one_launch(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """From one MLP to the next: a residual, two norms, attention, and another residual."""
    ordinary, replayed = (launches(llama, card, around(llama.spec, captured=one))[-1] for one in (False, True))
    assert replayed < ordinary - 3 * 35  # of about 38 launches around each of the three MLPs
    assert second.get("replays") == 4 * (TOKENS - FIRST_PASSES - 1)


def test_what_reaches_a_gap_is_compared(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """An error there would not show in the result of the trial, whose MLPs are those of the ordinary pass."""
    found = []
    for captured in (False, True):
        placed = Placed(llama, card, around(llama.spec, captured=captured))
        norm = placed.model.module.model.layers[1].post_attention_layernorm
        norm.forward = counting(norm.forward, placed.cache)
        found.append(list(placed.draw(llama.prompt, TOKENS)))
        placed.close(card)
    assert found[0] == found[1] != llama.expected
    assert second.get("replays") == 2, "of the trial's four, those up to the gap"


def counting(norm: Callable[[Tensor], Tensor], cache: KVCache) -> Callable[[Tensor], Tensor]:
    """Make a norm that is larger by what the cache says of its length."""
    return lambda x: norm(x) * (1 + 0.01 * (cache.get_seq_length() % 50))


def test_a_module_that_is_called_otherwise_is_no_gap(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    placed = Placed(llama, card, around(llama.spec))
    mlp = placed.model.module.model.layers[1].mlp
    hook = mlp.register_forward_pre_hook(lambda _, args, named: ((), {"x": args[0]} | named), with_kwargs=True)
    assert list(placed.draw(llama.prompt, TOKENS)) == llama.expected
    assert second.get("replays") == 0
    hook.remove()
    placed.placement.close()
    assert not any("forward" in vars(part) for layer in placed.model.module.model.layers for part in (layer, layer.mlp))
    card.close()


@pytest.mark.parametrize("kind", ["whole", "around"])
def test_graphs_for_several_numbers_of_rows_share_memory(
    second: SecondDevice, card: SecondCard, llama: Bench, kind: str
) -> None:
    """They share the memory of what is computed between their inputs and results."""
    placed = Placed(llama, card, PLANS[kind](llama.spec, True))
    placed.model.forward(llama.prompt, placed.cache)
    placed.model.forward(llama.prompt[:1], placed.cache)
    used = [card.memory().used]
    for count in range(8, 0, -1):
        captured(placed, llama, count)
        used.append(card.memory().used)
    assert second.get("replays") == 2 * 8 * GRAPHS[kind] + (kind == "whole")
    first, others = used[1] - used[0], used[8] - used[1]
    assert 0 < others < 2 * first
    assert 0 < graphs_of(placed).taken <= first + others
    placed.close(card)


def captured(placed: Placed, bench: Bench, count: int) -> None:
    """Compute as many passes of `count` rows as it takes to replay one."""
    for _ in range(FIRST_PASSES + 2):
        placed.model.forward(bench.expected[:count], placed.cache, keep=count)
        placed.cache.rewind(40)


def graphs_of(placed: Placed) -> GraphUse:
    use = placed.placement.captures.graphs
    assert use is not None
    return use


def test_more_memory_than_was_set_aside_is_not_taken(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    """The first graph takes more than the plan says; others are not captured, but one may take its place."""
    placed = Placed(llama, card, replace(whole(llama.spec), graph_bytes=1))
    placed.model.forward(llama.prompt, placed.cache)
    captured(placed, llama, 8)
    use, replays = graphs_of(placed), second.get("replays")
    assert (use.full, use.reserved, replays) == (False, 1, 2)
    captured(placed, llama, 1)
    assert second.get("replays") == replays
    assert graphs_of(placed) == replace(use, full=True)
    placed.cache.move({})
    placed.cache.move(placed.placement.kv_places(placed.placement.plan))
    captured(placed, llama, 8)
    assert second.get("replays") > replays + 2
    assert 0 < graphs_of(placed).taken <= use.taken
    placed.close(card)


def test_larger_passes_are_not_captured(second: SecondDevice, card: SecondCard, llama: Bench) -> None:
    placed = Placed(llama, card, whole(llama.spec))
    placed.model.forward(llama.prompt, placed.cache)
    captured(placed, llama, MOST_ROWS)
    replays = second.get("replays")
    captured(placed, llama, MOST_ROWS + 1)
    assert second.get("replays") == replays > 0
    placed.close(card)


def test_a_card_that_is_full_at_a_gap_computes_on_under_another_plan(
    second: SecondDevice, card: SecondCard, llama: Bench
) -> None:
    """Graphs before the gap are still under way when they are freed, while the error is handled."""
    placed = Placed(llama, card, around(llama.spec))
    drawn = placed.draw(llama.prompt, TOKENS)
    found = [next(drawn) for _ in range(FIRST_PASSES + 4)]
    replays, used = second.get("replays"), card.memory().used
    second.set(lag=0.01)
    first = placed.model.module.model.layers[1].mlp.gate_proj
    hook = first.register_forward_pre_hook(lambda *_: second.set(full_after=0, full_times=1))
    with pytest.raises(NotEnoughMemory) as raised:
        next(drawn)
    hook.remove()
    assert second.get("replays") == replays + 2
    list(placed.placement.apply(around(llama.spec, captured=False)))
    assert card.memory().used < used
    second.set(lag=0)
    rest = placed.draw([*llama.prompt, *found], TOKENS - len(found))
    assert [*found, *rest] == llama.expected
    del raised
    placed.close(card)


def test_bench_says_what_graphs_take(
    second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in(second, monkeypatch)
    options = ["--simulate-gpu", "vram=60MiB,link=2GB/s,gpu=100GB/s", "--prompt-tokens", "24", "--new-tokens", "24"]
    assert main(["bench", str(chat_model(tmp_path)), *options, "--context", "512", "--json"]) == 0
    graphs = json.loads(capsys.readouterr().out.splitlines()[-1])["graphs"]
    assert graphs["layers"] > 0
    assert graphs["gaps"] == 0
    assert graphs["bytes"] > 0
