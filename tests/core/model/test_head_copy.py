"""A model with a copy of its output head that is read first: the same tokens, and exact logits for the top ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.events import LoadOptions, Message, Request, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import TokenSampler, resolve
from core.generation.speculation import Guess, Speculation
from core.model.host_weights import HEAD_COPY_NAME
from core.offload.hetero_linear import CopiedHead
from core.paths import cache_folder
from core.runtime.loaded_model import LoadedModel
from core.runtime.reply import Reply
from core.weights.packed_cache import PackedCache
from tests.core.greedy import loaded_model
from tests.core.tiny_tokenizer import chat_model

VOCABULARY, WANTED = 3000, 24
PROMPT = [7, 300, 41, 2, 999, 7, 300, 41]


@pytest.fixture(autouse=True)
def _small_heads_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.spec.model.LEAST_HEAD", 0)
    monkeypatch.setattr("core.hardware.machine.TYPICAL_FLOPS", (1e15,) * 4)  # make decode memory-bound
    monkeypatch.setattr("core.spec.model.READ_AGAIN", WANTED)
    monkeypatch.setattr("core.offload.host_weight.READ_AGAIN", WANTED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return chat_model(tmp_path, vocab_size=VOCABULARY, hidden_size=128)


def opened(folder: Path, format: str, *, whole: bool = False) -> LoadedModel:
    options = LoadOptions(threads=1, format=format, context=256, whole_head=whole)  # type: ignore[arg-type]
    return loaded_model(folder, options)


def told(loaded: LoadedModel, ids: list[int], keep: int = 1) -> Tensor:
    loaded.cache.reset()
    loaded.model.forward(ids[:-1], loaded.cache)
    return loaded.model.forward(ids[-1:] if keep == 1 else ids, loaded.cache, keep=keep)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_logits_that_count_are_the_heads(folder: Path, format: str) -> None:
    copied, whole = opened(folder, format), opened(folder, format, whole=True)
    assert copied.plan.head_copy > 0
    assert whole.plan.head_copy == 0
    found, wanted = told(copied, PROMPT)[0], told(whole, PROMPT)[0]
    own = found == wanted
    assert own[wanted.topk(WANTED // 2).indices].all()
    assert 0.5 * VOCABULARY < (~own).sum() < VOCABULARY - WANTED / 2
    assert (found - wanted).abs().max() < 0.5 * wanted.std()
    copied.model.whole_head = True
    assert told(copied, PROMPT)[0].equal(wanted)


def test_many_rows_are_the_heads_alone(folder: Path) -> None:
    copied, whole = opened(folder, "int8"), opened(folder, "int8", whole=True)
    assert told(copied, PROMPT, keep=len(PROMPT)).equal(told(whole, PROMPT, keep=len(PROMPT)))


class Foretelling:
    """Drafts a known reply, with a wrong token now and then."""

    name = "foretelling"

    def __init__(self, reply: list[int]) -> None:
        self._reply = reply

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        """No-op."""

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        at = len(ids) - len(PROMPT)
        return [token if place % 5 else 1 for place, token in enumerate(self._reply[at : at + 4], at)]

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        """No-op."""


def greedy(loaded: LoadedModel, speculation: Speculation | None) -> list[int]:
    loaded.cache.reset()
    sample = TokenSampler(resolve(Sampling(temperature=0.0), Sampling()))
    steps = generate(loaded.model, loaded.cache, PROMPT, sample, never, speculation=speculation)
    drawn = (step.id for step in steps if isinstance(step, DrawnToken))
    return [next(drawn) for _ in range(60)]


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_greedy_tokens_are_the_same_drafted_or_not(folder: Path, format: str) -> None:
    copied, whole = opened(folder, format), opened(folder, format, whole=True)
    wanted = greedy(whole, None)
    assert greedy(copied, None) == wanted
    ahead = Speculation([Foretelling(wanted)])
    assert greedy(copied, ahead) == greedy(whole, Speculation([Foretelling(wanted)]))
    assert 0 < ahead.taken < ahead.drafted


def test_the_copy_is_mapped_from_the_disk_where_the_plan_has_it(folder: Path) -> None:
    first = opened(folder, "int4")
    cache = PackedCache(cache_folder() / "packed")
    kept = [cache.open(entry.key) for entry in cache.entries()]
    assert any(weights is not None and HEAD_COPY_NAME in weights for weights in kept)
    second = opened(folder, "int4")
    assert told(first, PROMPT).equal(told(second, PROMPT))
    heads = [one for one in second.source.module.modules() if isinstance(one, CopiedHead)]
    assert len(heads) == 1
    assert not any(isinstance(one, CopiedHead) for one in opened(folder, "int4", whole=True).source.module.modules())


def test_a_card_takes_the_head_itself(folder: Path) -> None:
    copied = opened(folder, "int8")
    options = LoadOptions(threads=1, format="int8", context=256, simulate_gpu="vram=1GiB,link=12GB/s")
    on_card = loaded_model(folder, options)
    assert on_card.plan.gpu >= 0
    assert on_card.plan.head_copy == 0
    wanted = told(on_card, PROMPT)[0]
    on_card.to_host()
    assert on_card.plan.head_copy == 0
    assert told(on_card, PROMPT)[0].argmax() == wanted.argmax() == told(copied, PROMPT)[0].argmax()


def test_limits_let_go_of_the_copy(folder: Path) -> None:
    copied = opened(folder, "int8")
    plan = replace(copied.plan, head_copy=0)
    copied.move_to(plan)
    assert told(copied, PROMPT).equal(told(opened(folder, "int8", whole=True), PROMPT))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("wish", "whole"),
    [({}, False), ({"logprobs": 2}, True), ({"sampling": Sampling(temperature=1.5, max_new_tokens=2)}, True)],
)
def test_replies_in_which_unlikely_tokens_count_read_the_whole_head(
    folder: Path, wish: dict[str, Any], whole: bool
) -> None:
    loaded = opened(folder, "int8")
    request = Request((Message("user", "hello"),), Sampling(temperature=0.7, max_new_tokens=2))
    assert list(Reply(loaded, replace(request, **wish), never).events())
    assert loaded.model.whole_head is whole
