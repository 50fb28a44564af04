"""What drafting ahead gains on a real model: plain decoding and each drafter in turn, on the same questions.

    python -m tests.bench.speculation FOLDER|shape:NAME [--draft self] [--simulate-gpu SPEC] [--vram SIZE]

A shape has random weights: it shows the paths, not real acceptance.
Prints tokens/s of each, the ratio, acceptance and tokens per pass, and what the plan expected; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from core.commands.arguments import size
from core.events import LOOKUP, SELF, LoadOptions, Message, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import make_sampler, resolve
from core.generation.speculation import Speculation
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model

QUESTIONS = (
    "What is a graphics card?",
    "Write a short story about a fox and a crow.",
    "List ten facts about the sea.",
    "Explain how bread is made, step by step.",
)


def load(options: argparse.Namespace, draft: str) -> LoadedModel:
    wishes = LoadOptions(
        vram=options.vram, format=options.format, context=2048, simulate_gpu=options.simulate_gpu, draft=draft
    )
    *_, model = load_model(options.folder, wishes)
    assert isinstance(model, LoadedModel)
    return model


def rate(model: LoadedModel, question: str, temperature: float, ahead: Speculation | None, count: int) -> float:
    """Tokens/s of `count` tokens after the first."""
    model.cache.reset()
    ids = _prompt(model, question)
    sample = make_sampler(resolve(Sampling(temperature=temperature, seed=1), Sampling()))
    said, began = 0, 0.0
    for step in generate(model.model, model.cache, ids, sample, never, model.plan.prefill_chunk, ahead):
        if isinstance(step, DrawnToken):
            began = began or time.perf_counter()
            said += 1
        if said > count:
            break
    return count / (time.perf_counter() - began)


def _prompt(model: LoadedModel, question: str) -> list[int]:
    if model.tokenizer is not None:
        return model.tokenizer.render([Message("user", question)])
    source = random.Random(question)
    return [source.randrange(model.spec.vocab) for _ in range(64)]


def compare(
    plain: LoadedModel, drafted: LoadedModel, temperature: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Both in turn over all questions; medians over the pairs."""
    pairs, passes, tokens, tried, taken = [], 0, 0, 0, 0
    for question in QUESTIONS[: options.questions] * options.rounds:
        ahead = drafted.speculation([1])
        assert ahead is not None
        before = rate(plain, question, temperature, None, options.tokens)
        after = rate(drafted, question, temperature, ahead, options.tokens)
        pairs.append((before, after))
        passes, tokens = passes + ahead.passes, tokens + ahead.tokens
        tried, taken = tried + ahead.drafted, taken + ahead.taken
    return {
        "temperature": temperature,
        "tok_s": round(statistics.median(before for before, _ in pairs), 2),
        "with_drafts": round(statistics.median(after for _, after in pairs), 2),
        "ratio": round(statistics.median(after / before for before, after in pairs), 3),
        "tokens_per_pass": round(tokens / passes, 2),
        "acceptance": round(taken / tried, 3) if tried else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--draft", default=SELF)
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--vram", type=size)
    parser.add_argument("--simulate-gpu")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    options = parser.parse_args()
    plain, drafted = load(options, LOOKUP), load(options, options.draft)
    expected = drafted.draft.gain if drafted.draft else None
    results = [compare(plain, drafted, temperature, options) for temperature in options.temperatures]
    for result in results:
        print(result, flush=True)
    print(json.dumps({"expected_gain": expected, "results": results}))


if __name__ == "__main__":
    main()
