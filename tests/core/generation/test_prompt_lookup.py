"""Prompt lookup: the same tokens as without, and quiet where it does not pay."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from core.generation.generate import DrawnToken, generate
from core.generation.prompt_lookup import LEAST_GUESS, MOST_ROWS, REST, TIMED_PASSES, PromptLookup
from core.generation.sampler import Draw, make_sampler
from core.layers.kv_cache import KVCache
from core.model.language_model import LanguageModel, fill
from core.model.model_source import open_source
from tests.core.families import VOCABULARY, make_model


def warmed_up() -> PromptLookup:
    lookup = PromptLookup()
    for _ in range(TIMED_PASSES):
        lookup.passed(0, 0, 0.01)
    return lookup


class Run:
    """A filled tiny model that can be run many times."""

    def __init__(self, family: str, folder: Path) -> None:
        source = open_source(make_model(family, folder))
        for _ in fill(source.module, source.weights):
            pass
        self.model, self.config = LanguageModel(source.module), source.module.config

    def tokens(self, prompt: list[int], draw: Draw, lookup: PromptLookup | None, count: int = 96) -> list[int]:
        cache = KVCache(self.config, 512)
        steps = generate(self.model, cache, prompt, make_sampler(draw), bool, 0, lookup)
        return [step.id for step in islice((s for s in steps if isinstance(s, DrawnToken)), count)]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guessing_changes_no_token(family: str, temperature: float, tmp_path: Path) -> None:
    run = Run(family, tmp_path)
    torch.manual_seed(3)
    prompt = torch.randint(3, VOCABULARY, (12,)).tolist() * 4
    draw = Draw(temperature, 3, 1.0, 0.0, 1.0, seed=5, max_new_tokens=None)
    assert run.tokens(prompt, draw, PromptLookup()) == run.tokens(prompt, draw, None)


def test_repeated_text_is_guessed_ever_further() -> None:
    lookup, ids = warmed_up(), list(range(20)) * 3
    sizes = []
    for _ in range(5):
        guess = lookup.guess(ids, 100)
        assert guess == [(ids[-1] + 1 + i) % 20 for i in range(len(guess))]
        sizes.append(len(guess))
        lookup.passed(len(guess), len(guess), 0.012)
    assert sizes[0] == LEAST_GUESS
    assert sizes[-1] == MOST_ROWS - 1


def test_wrong_guesses_make_it_rest_longer_each_time() -> None:
    lookup, ids = warmed_up(), list(range(20)) * 3
    guesses = []
    for _ in range(40 * REST):
        guess = lookup.guess(ids, 100)
        guesses.append(len(guess))
        lookup.passed(len(guess), 0, 0.012 if guess else 0.01)
    # Less than one pass in fifty is spent on guesses that never come true.
    assert 0 < sum(1 for size in guesses if size) < len(guesses) // 50


def test_nothing_is_guessed_beyond_the_context() -> None:
    assert warmed_up().guess([1, 2, 3, 4, 1, 2, 3], 0) == []
    assert warmed_up().guess([1, 2, 3, 4, 1, 2, 3], 1) == [4]
