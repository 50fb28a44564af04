"""Attention divided by heads between the second device and the CPU, with the KV cache in both memories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.engine import Engine
from core.events import Event, Finished, LoadOptions, Message, Piece, Request, Sampling
from core.generation.generate import DrawnToken, generate
from core.layers.fused_attention import FusedAttention
from core.layers.kv_cache import KVCache
from core.layers.kv_heads import DividedStates
from core.layers.kv_parking import ParkedPrefixes
from core.model.language_model import LanguageModel
from tests.core.families import make_model, reference_tokens, surveyed
from tests.core.offload.test_hetero_linear import TOKENS, Bench, halved, rearrange
from tests.core.second_device import SecondCard, SecondDevice, put_in
from tests.core.tiny_tokenizer import chat_model

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "granite", "mixtral", "smollm3", "llama4_text"]
REFUSED = ["phi3", "olmo2", "opt", "gpt2", "falcon", "qwen3_next", "gpt_oss", "deepseek_v3", "cohere"]
"""Fused or normalised projections, no statement of transformers, recurrent states, sinks, compressed states, norms with
weights for each head."""


def reply(model: LanguageModel, cache: KVCache, prompt: list[int]) -> list[int]:
    tokens: list[int] = []
    for step in generate(model, cache, prompt, lambda logits, _: int(logits.argmax()), bool, 16):
        tokens += [step.id] if isinstance(step, DrawnToken) else []
        if len(tokens) == TOKENS:
            break
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_as_undivided(card: SecondCard, tmp_path: Path, family: str) -> None:
    """Heads come and go in mid-reply."""
    bench = Bench(family, tmp_path)
    assert bench.spec.kv_heads("bf16") == 2
    assert bench.run(halved(bench.spec, 1), halved(bench.spec, 0), card) == bench.expected
    assert bench.run(halved(bench.spec, 0), halved(bench.spec, 1), card) == bench.expected


def test_norms_of_heads_are_on_both_sides(card: SecondCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no library was compiled, so that they are transformers' modules."""
    monkeypatch.setattr("core.layers.norms.native", lambda: None)
    bench = Bench("qwen3", tmp_path)
    assert bench.run(halved(bench.spec, 1), halved(bench.spec, 0), card) == bench.expected


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_heads_change_sides_in_mid_reply(card: SecondCard, tmp_path: Path, before: int, after: int) -> None:
    bench = Bench("qwen2", tmp_path, num_key_value_heads=4, num_attention_heads=8, hidden_size=128)
    assert bench.run(halved(bench.spec, before), halved(bench.spec, after), card) == bench.expected


@pytest.mark.parametrize("family", REFUSED)
def test_other_attention_is_not_divided(tmp_path: Path, family: str) -> None:
    assert surveyed(make_model(family, tmp_path), family).kv_heads("bf16") == 0


def test_replies_are_rewound_edited_and_parked(card: SecondCard, tmp_path: Path) -> None:
    """A prefix is read no second time, whether it was kept, cut off, or parked for another conversation."""
    bench, parked = Bench("mistral", tmp_path), ParkedPrefixes(1 << 20)
    model, placement, cache = bench.placed(halved(bench.spec, 1), card)
    prompts = [bench.prompt * 3, [*bench.prompt, 7, 9, 11], [9, 8, 7] * 30, [*bench.prompt * 3, 5]]
    for prompt in prompts:
        parked.switch(cache, prompt, 0)
        known = cache.reuse(prompt)
        assert (known >= len(bench.prompt)) == (prompt in prompts[1::2])
        assert reply(model, cache, prompt) == reference_tokens(tmp_path, prompt, TOKENS)
    placement.close()
    card.close()


def test_drafts_are_checked_and_taken_back(card: SecondCard, tmp_path: Path) -> None:
    """Several tokens in a pass, of which the last are wrong."""
    bench = Bench("llama", tmp_path)
    model, placement, cache = bench.placed(halved(bench.spec, 1), card)
    model.forward(bench.prompt, cache)
    length = len(bench.prompt)
    for at in range(0, TOKENS - 4, 3):
        right = bench.expected[at : at + 3]
        rows = model.forward([*right, 5, 6], cache, keep=5)
        assert rows.argmax(-1).flatten().tolist()[:3] == bench.expected[at + 1 : at + 4]
        length += 3
        assert cache.rewind(length) == length
    placement.close()
    card.close()


def test_a_cache_that_is_divided_otherwise_is_taken_as_it_is(card: SecondCard, tmp_path: Path) -> None:
    """Weights move before the KV cache: if that fails in between, the next pass finds other heads in it."""
    bench = Bench("llama", tmp_path, num_key_value_heads=4)
    model, placement, _ = bench.placed(halved(bench.spec, 1), card)
    cache = placement.make_cache(model.module.config, halved(bench.spec, 3))
    assert reply(model, cache, bench.prompt) == bench.expected
    placement.close()
    card.close()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_the_cpu_computes_its_heads_in_two_calls(
    card: SecondCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Our library gives the same as the model's own layers, for one token and for several."""
    bench, calls, own = Bench(family, tmp_path, dtype=torch.bfloat16), list[int](), FusedAttention.__call__
    monkeypatch.setattr(FusedAttention, "__call__", lambda self, x, *rest: calls.append(1) or own(self, x, *rest))
    model, placement, cache = bench.placed(halved(bench.spec, 1), card)
    passes, found = [[5], [6, 7, 8], [9]], list[list[Tensor]]()
    for heads in (1, 0):
        rearrange(model, cache, halved(bench.spec, heads))
        cache.rewind(len(bench.prompt)) if cache.tokens else model.forward(bench.prompt, cache)
        found.append([model.forward(ids, cache, keep=len(ids)) for ids in passes])
    assert len(calls) == len(passes) * bench.spec.layers
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()
    placement.close()
    card.close()


def test_the_engine_divides_heads_in_mid_reply_and_loses_the_card(
    second: SecondDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words while heads come to the card, after it is lost, and with the prefix that both memories kept."""
    put_in(second, monkeypatch)
    engine = Engine()
    request = Request((Message("user", "Who is the fox?"),), Sampling(temperature=0, max_new_tokens=24))
    list(engine.load(chat_model(tmp_path), LoadOptions(context=512, simulate_gpu="vram=60MiB,link=2GB/s,gpu=100GB/s")))
    loaded = engine.loaded
    assert loaded is not None
    plan = halved(loaded.spec, 1)
    divided = replace(loaded.plan, linears=plan.linears, kv_devices=plan.kv_devices, ring=plan.ring, captured=())

    def answer(at: dict[int, object]) -> str:
        """Ask, and do something after so many pieces."""
        events: list[Event] = []
        for event in engine.chat(request):
            events.append(event)
            if isinstance(event, Piece) and (work := at.get(sum(isinstance(one, Piece) for one in events))):
                work()  # type: ignore[operator]
        assert isinstance(events[-1], Finished), events[-1]
        return "".join(event.text for event in events if isinstance(event, Piece))

    def divide() -> None:
        loaded.move_to(divided)
        assert all(isinstance(layer.keys, DividedStates) for layer in loaded.cache.layers)

    said = answer({})
    assert answer({4: divide}) == said
    divide()
    assert answer({8: lambda: second.set(lost=1)}) == said
    assert loaded.plan.gpu == -1
    engine.close()
