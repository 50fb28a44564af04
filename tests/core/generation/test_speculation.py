"""Speculative decoding: the same tokens as without it, whatever the drafter, and no drafts where they do not pay."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.generation.generate import DrawnToken, drawn, generate
from core.generation.model_drafter import ModelDrafter, SelfDrafter
from core.generation.prompt_lookup import PromptLookup
from core.generation.sampler import Draw, TokenSampler, distribution
from core.generation.speculation import HOLD_PASSES, LEAST_TIMED, REST, TIMED_PASSES, Drafter, Guess, Speculation
from core.layers.kv_cache import KVCache
from core.model.filling import fill
from core.model.language_model import LanguageModel
from core.model.model_source import open_source
from core.planning.speculation import MOST_ROWS, Prices, best_size, expected_gain, expected_tokens
from core.spec import AT_ONCE
from tests.core.families import VOCABULARY, make_model

# Their recurrent states are restored after a rejected draft.
HYBRIDS = ("qwen3_next", "qwen3_5_text", "bamba", "falcon_h1", "lfm2")
DRAWS = int(os.environ.get("HETEGEN_DRAWS", "4000"))
GREEDY = Draw(0.0, 0, 1.0, 0.0, 1.0, seed=5, max_new_tokens=None)
SAMPLED = Draw(0.7, 0, 0.95, 0.0, 1.1, seed=5, max_new_tokens=None)


class Oracle:
    """Drafts the given reply, with every `wrong`-th token false."""

    name = "oracle"

    def __init__(self, text: Sequence[int], wrong: int = 0, size: int = MOST_ROWS - 1) -> None:
        self._text, self._wrong, self._size = list(text), wrong, size

    def prepare(self, ids: Sequence[int], guess: Guess) -> None:
        pass

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        there = range(len(ids), min(len(ids) + min(self._size, room), len(self._text)))
        return [(self._text[at] + (self._wrong > 0 and at % self._wrong == 0)) % VOCABULARY for at in there]

    def checked(self, drafted: int, taken: int, draft: float, check: float) -> None:
        pass


def filled(folder: Path) -> SimpleNamespace:
    source = open_source(folder)
    for _ in fill(source.module, source.weights):
        pass
    return SimpleNamespace(model=LanguageModel(source.module), config=source.module.config)


def tokens(
    made: SimpleNamespace, prompt: list[int], draw: Draw, drafters: Sequence[Drafter], count: int = 96
) -> list[int]:
    return said(made, prompt, draw, Speculation(drafters) if drafters else None, KVCache(made.config, 512), count)


def said(
    made: SimpleNamespace, prompt: list[int], draw: Draw, speculation: Speculation | None, cache: KVCache, count: int
) -> list[int]:
    steps = generate(made.model, cache, prompt, TokenSampler(draw), bool, 0, speculation)
    return [step.id for step in islice((s for s in steps if isinstance(s, DrawnToken)), count)]


def prompt_of(length: int) -> list[int]:
    torch.manual_seed(3)
    return torch.randint(3, VOCABULARY, (length,)).tolist()


FAMILIES = ("llama", "mistral", "gemma3_text", "qwen3_moe", *HYBRIDS)
"""What a family keeps of rejected drafts does not depend on how tokens are drawn, so that both ways take turns."""


@pytest.mark.parametrize(("family", "temperature"), [*zip(FAMILIES, cycle((0.0, 0.7)), strict=False)])
def test_drafting_changes_no_token(family: str, temperature: float, tmp_path: Path) -> None:
    made, prompt = filled(make_model(family, tmp_path)), prompt_of(12) * 4
    draw = Draw(temperature, 3, 1.0, 0.0, 1.0, seed=5, max_new_tokens=None)
    plain = tokens(made, prompt, draw, [])
    for drafters in (
        [PromptLookup()],
        [Oracle([*prompt, *plain], wrong=5)],
        [Oracle([*prompt, *plain]), PromptLookup()],
    ):
        assert tokens(made, prompt, draw, drafters) == plain


def drafted() -> Iterator[Any]:
    """Yield each family with both drafters, of which one is sampled and the other greedy, in turns."""
    for family, sampled in zip(FAMILIES, cycle((ModelDrafter, SelfDrafter)), strict=False):
        for makes in (ModelDrafter, SelfDrafter):
            draw, name = (SAMPLED, "sampled") if makes is sampled else (GREEDY, "greedy")
            yield pytest.param(family, makes, draw, id=f"{name}-{makes.__name__}-{family}")


@pytest.mark.parametrize(("family", "makes", "draw"), [*drafted()])
def test_a_drafting_model_changes_no_token(family: str, makes: type[ModelDrafter], draw: Draw, tmp_path: Path) -> None:
    """Another model with the same layers drafts badly, and the same model perfectly; neither changes the reply."""
    made, prompt = filled(make_model(family, tmp_path / "target")), prompt_of(40)
    other = filled(make_model(family, tmp_path / "other", seed=77))
    plain = tokens(made, prompt, draw, [])
    for drafting in (other, made):
        cache = KVCache(made.config, 512)
        own = cache if makes is SelfDrafter else KVCache(drafting.config, 512)
        speculation = Speculation([makes("draft", drafting.model, own, VOCABULARY)])
        assert said(made, prompt, draw, speculation, cache, 96) == plain
        assert speculation.drafted > 0
    assert speculation.taken > 0.9 * speculation.drafted
    assert speculation.drafter == "draft"


def test_a_second_turn_goes_on_from_both_caches(tmp_path: Path) -> None:
    made = filled(make_model("llama", tmp_path))
    cache, own, prompt = KVCache(made.config, 512), KVCache(made.config, 512), prompt_of(40)
    drafter = ModelDrafter("draft", made.model, own, VOCABULARY)
    first = said(made, prompt, GREEDY, Speculation([drafter]), cache, 30)
    longer = [*prompt, *first, *prompt_of(10)]
    assert said(made, longer, GREEDY, Speculation([drafter]), cache, 30) == tokens(made, longer, GREEDY, [], 30)


@pytest.mark.parametrize("drafted", [[2, 7], [9, 9], [2, 9]])
def test_what_is_drawn_is_distributed_as_without_a_draft(drafted: list[int]) -> None:
    """Chi-square of both tokens; of the second over the draws whose first one was the drafted one."""
    logits = torch.tensor([[0.0, 0.5, 2.0, 1.0], [1.0, 0.2, 0.0, 0.7], [0.0, 0.0, 0.0, 0.0]])
    logits = torch.cat([logits, torch.full((3, 6), -3.0)], dim=1)
    runs = [[one.id for one in drawn(logits, drafted, [], sampler(seed))] for seed in range(DRAWS)]
    for place in range(2):
        check_distribution(logits[place], [run[place] for run in runs if len(run) > place])


def sampler(seed: int) -> TokenSampler:
    return TokenSampler(Draw(0.8, 0, 0.97, 0.0, 1.0, seed, max_new_tokens=None))


def check_distribution(logits: Tensor, there: list[int]) -> None:
    """Chi-square of the tokens drawn from logits (V,)."""
    probabilities, ids = distribution(logits, Draw(0.8, 0, 0.97, 0.0, 1.0, 11, None))
    counts = torch.tensor([there.count(int(one)) for one in ids], dtype=torch.float)
    assert counts.sum() == len(there)
    expected = probabilities * len(there)
    # Exceeded by chance once in ten thousand runs, for these degrees of freedom (at most 9).
    assert len(there) < 100 or float(((counts - expected) ** 2 / expected).sum()) < 35


def test_who_sees_nearly_the_same_draws_nearly_always_the_same() -> None:
    torch.manual_seed(8)
    logits = torch.randn(1, 40) * 2
    seen = logits + 0.15 * torch.randn(1, 40)
    guesses = [sampler(seed).guess(seen[0], [])[0] for seed in range(DRAWS)]
    runs = [[one.id for one in drawn(logits, [], [], sampler(seed))] for seed in range(DRAWS)]
    check_distribution(logits[0], [run[0] for run in runs])
    right = sum(guess == run[0] for guess, run in zip(guesses, runs, strict=True)) / DRAWS
    wide = [
        torch.zeros(40).scatter(0, *reversed(distribution(one[0], Draw(0.8, 0, 0.97, 0.0, 1.0, 11, None))))
        for one in (logits, seen)
    ]
    apart = float((wide[0] - wide[1]).abs().sum()) / 2
    assert right > (1 - apart) / (1 + apart) - 0.03
    assert right > float(wide[0].max()) + 0.2, "more than the likeliest token would be"


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drafting itself take no time: a thread that is held up there for a tenth of a second would lose its gain."""
    monkeypatch.setattr("core.generation.speculation.time", SimpleNamespace(perf_counter=lambda: 0.0))


def passed(speculation: Speculation, ids: list[int], taken: int, seconds: float) -> int:
    drafted = len(speculation.draft(ids, 100))
    speculation.passed(drafted, min(taken, drafted), seconds if drafted else 0.01)
    return drafted


@pytest.mark.usefixtures("instant")
def test_wrong_drafts_make_a_drafter_rest_longer_each_time() -> None:
    speculation, ids = Speculation([PromptLookup()]), list(range(20)) * 3
    drafts = [passed(speculation, ids, 0, 0.012) for _ in range(40 * REST)]
    # Less than one pass in fifty is spent on drafts that are never accepted.
    assert 0 < sum(1 for size in drafts if size) < len(drafts) // 50


@pytest.mark.parametrize(("seconds", "plain"), [(0.01, TIMED_PASSES), (0.3, LEAST_TIMED)])
def test_fewer_plain_passes_are_timed_where_each_takes_long(seconds: float, plain: int) -> None:
    speculation, ids = Speculation([PromptLookup()]), list(range(20)) * 3
    for _ in range(plain):
        assert speculation.draft(ids, 100) == []
        speculation.passed(0, 0, seconds)
    assert speculation.draft(ids, 100) != []


@pytest.mark.usefixtures("instant")
def test_the_drafter_that_gains_more_is_asked_first() -> None:
    text = list(range(100, 400))
    wrong, right = Oracle(text, wrong=1), Oracle(text)
    right.name = "right"
    speculation, ids = Speculation([wrong, right]), text[:10]
    asked = list[str]()
    for _ in range(TIMED_PASSES + 20):
        proposal = speculation.draft(ids, 100)
        taken = len(proposal) if proposal == right.draft(ids, 100) else 0
        speculation.passed(len(proposal), taken, 0.012 if proposal else 0.01)
        asked += [speculation.drafter] if proposal else []
    assert asked == ["oracle"] + ["right"] * 19


@pytest.mark.usefixtures("instant")
def test_rows_are_divided_for_drafts_only_while_there_are_some() -> None:
    speculation, ids = Speculation([PromptLookup()]), list(range(20)) * 3
    assert not speculation.expects_drafts
    for _ in range(TIMED_PASSES + 1):
        passed(speculation, ids, 2, 0.012)
    assert speculation.expects_drafts
    for _ in range(HOLD_PASSES):
        passed(speculation, [1, 2, 3], 0, 0.01)
    assert not speculation.expects_drafts


def test_the_best_size_grows_with_acceptance_and_falls_with_cost() -> None:
    assert expected_tokens(1.0, 7) == 8
    assert expected_tokens(0.0, 7) == 1
    sizes = [best_size(acceptance, Prices.even(0.25, 0.02).of_pass) for acceptance in (0.2, 0.6, 0.9, 0.99)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, MOST_ROWS - 1)
    cheap = best_size(0.9, Prices.even(0.05, 0.02).of_pass)
    assert best_size(0.9, Prices.even(0.6, 0.02).of_pass) < cheap
    assert best_size(0.9, Prices.even(0.05, 0.3).of_pass) < cheap
    assert expected_gain(0.9, 7, Prices.even(0.05, 0.0).of_pass) > 4


def test_prices_between_rows_are_interpolated_and_never_fall() -> None:
    prices = Prices(0.5, (1.1, 1.3, 1.7, 4.1))
    found = [prices.of_check(size) for size in range(MOST_ROWS)]
    assert found[:4] == pytest.approx([1.0, 1.1, 1.2, 1.3])
    assert found[7:] == pytest.approx([1.7 + 0.3 * more for more in range(9)])
    assert prices.of_pass(3) == pytest.approx(2.8)
    assert best_size(0.95, prices.of_check) == AT_ONCE - 1, "a second turn of the kernels does not pay"
    noisy = Prices(0.0, (1.2, 1.1, 1.1, 1.3))
    assert [noisy.of_check(size) for size in (0, 1, 3, 7)] == [1.0, 1.2, 1.2, 1.2]
