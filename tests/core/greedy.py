"""The engine's path from a model folder to greedy tokens, without text, for fidelity tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from core.events import LoadOptions, Prefill, Sampling, never
from core.generation.generate import generate
from core.generation.sampler import TokenSampler, resolve
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from tests.core.families import VOCABULARY
from tests.core.tiny_tokenizer import write_tokenizer

OPTIONS = LoadOptions(context=1024, threads=1)
GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0, seed=0)


def loaded_model(path: Path, options: LoadOptions = OPTIONS) -> LoadedModel:
    """Load a model folder or file as the engine does."""
    *_, last = load_model(path, options)
    assert isinstance(last, LoadedModel)
    return last


def transformers_tokens(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Return the next `count` greedy tokens by transformers' own loop with its model."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=count,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return [int(id) for id in out[0, len(prompt) :]]


class GreedyPath:
    """A model folder, loaded as by the engine, with one KV cache that persists between calls."""

    def __init__(self, folder: Path, options: LoadOptions = OPTIONS) -> None:
        if not (folder / "tokenizer.json").exists():
            write_tokenizer(folder)
        loaded = loaded_model(folder, options)
        self.model = loaded.model
        self.module = loaded.model.module
        self.cache = loaded.cache
        self.reused = 0

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the next `count` greedy tokens; afterwards `reused` is the number of prompt tokens from the cache."""
        drawn: list[int] = []
        for step in generate(self.model, self.cache, prompt, TokenSampler(resolve(GREEDY, Sampling())), never):
            if isinstance(step, Prefill):
                self.reused = step.reused
            else:
                drawn.append(step.id)
            if len(drawn) == count:
                break
        return drawn


def random_prompt(length: int, seed: int = 5) -> list[int]:
    """Return random ids without special ones, the same at every call."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=source).tolist()


def pieces(prompt: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Split `prompt` into pieces of `size`."""
    return (prompt[start : start + size] for start in range(0, len(prompt), size))
