"""Measures the gain of drafting on a real model: plain decoding and each drafter alternately, on the same questions.

    python -m tests.bench.speculation FOLDER|shape:NAME [--draft self] [--simulate-gpu SPEC] [--vram SIZE]
    python -m tests.bench.speculation FOLDER --settings 1 2 3    # of the eight on which predictions are judged

A shape has random weights: it shows the paths, not real acceptance. Prints tokens/s of each, the ratio, acceptance,
tokens per pass, and the plan's expectation. `predicted` follows from the plan's prices of the passes made and the
tokens drafted; `expected` is its estimate before acceptance was known. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from core.commands.arguments import size
from core.commands.bench import STRATEGIES
from core.events import LOOKUP, SELF, LoadOptions, Message, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.prompt_lookup import PromptLookup
from core.generation.sampler import TokenSampler, resolve
from core.generation.speculation import Drafter, Speculation
from core.planning.drafting import prices
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model

QUESTIONS = (
    "What is a graphics card?",
    "Write a short story about a fox and a crow.",
    "List ten facts about the sea.",
    "Explain how bread is made, step by step.",
)
CARD = "vram=180MiB,link=0.5GB/s,cores=1"
SETTINGS = (
    {"draft": SELF, "format": "bf16", "text": "questions"},
    {"draft": SELF, "format": "bf16", "text": "code"},
    {"draft": SELF, "format": "bf16", "text": "resisting"},
    {"draft": LOOKUP, "format": "bf16", "text": "code"},
    {"draft": LOOKUP, "format": "int8", "text": "code"},
    {"draft": LOOKUP, "format": "int8", "text": "resisting"},
    {"draft": SELF, "format": "bf16", "text": "questions", "simulate_gpu": CARD, "strategy": "stream"},
    {"draft": LOOKUP, "format": "int8", "text": "code", "simulate_gpu": CARD, "strategy": "stream"},
)
CODE = """Write this program again, without any change:
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def is_empty(self):
        return len(self.items) == 0
"""
TEXTS = {
    "questions": QUESTIONS, "code": (CODE, f"Add a comment to each line.\n{CODE}"),
    "resisting": ("Write one word after the other that have nothing to do with each other.", "Invent many odd names."),
}  # fmt: skip


class Counted(Speculation):
    """Also keeps the numbers of tokens that each pass verified."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        super().__init__(drafters)
        self.sizes: list[int] = []

    def passed(self, drafted: int, taken: int, seconds: float) -> None:
        self.sizes.append(drafted)
        super().passed(drafted, taken, seconds)


def load(options: argparse.Namespace, draft: str) -> LoadedModel:
    wishes = LoadOptions(
        vram=options.vram, format=options.format, context=2048, simulate_gpu=options.simulate_gpu, draft=draft
    )
    *_, model = load_model(options.folder, wishes, options.strategy)
    assert isinstance(model, LoadedModel)
    return model


def drafters(model: LoadedModel) -> Counted:
    """Return the model's own drafter, or prompt lookup if it has none."""
    lookup = PromptLookup(prices(model.plan, None))
    return Counted([model.draft.drafter(model.cache, [1])] if model.draft else [lookup])


def predicted(model: LoadedModel, sizes: Sequence[int], tokens: int) -> float:
    """Return the gain, by the plan's prices, of passes that drafted so many tokens each and yielded `tokens`."""
    asked = prices(model.plan, model.draft.plan if model.draft else None)
    return tokens / sum(map(asked.of_pass, sizes))


def rate(model: LoadedModel, question: str, temperature: float, ahead: Speculation | None, count: int) -> float:
    """Return tokens/s of `count` tokens after the first."""
    model.cache.reset()
    ids = _prompt(model, question)
    sample = TokenSampler(resolve(Sampling(temperature=temperature, seed=1), Sampling()))
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
    """Run both alternately over all questions; return medians over the pairs."""
    pairs, sizes, tokens, taken = [], list[int](), 0, 0
    rate(plain, "Hello.", 0.0, None, 8)
    for question in TEXTS[options.text][: options.questions] * options.rounds:
        ahead = drafters(drafted)
        before = rate(plain, question, temperature, None, options.tokens)
        after = rate(drafted, question, temperature, ahead, options.tokens)
        pairs.append((before, after))
        sizes, tokens, taken = sizes + ahead.sizes, tokens + ahead.tokens, taken + ahead.taken
    ratio = statistics.median(after / before for before, after in pairs)
    # A drafting model takes memory from the other one, which is then slower by itself.
    slower = drafted.plan.decode_times.total / plain.plan.decode_times.total
    guess, tried = predicted(drafted, sizes, tokens) / slower, sum(sizes)
    return {
        "draft": options.draft,
        "format": options.format,
        "text": options.text,
        "card": bool(options.simulate_gpu),
        "temperature": temperature,
        "tok_s": round(statistics.median(before for before, _ in pairs), 2),
        "with_drafts": round(statistics.median(after for _, after in pairs), 2),
        "ratio": round(ratio, 3),
        "predicted": round(guess, 3),
        "error": round(guess / ratio - 1, 3),
        "expected": round(drafted.draft.gain, 3) if drafted.draft else None,
        "tokens_per_pass": round(tokens / len(sizes), 2),
        "acceptance": round(taken / tried, 3) if tried else None,
        "longest_draft": max(sizes),
    }


def judged(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the chosen settings one after another."""
    results = []
    for number in options.settings:
        chosen = {"simulate_gpu": None, "strategy": "hetegen", **SETTINGS[number - 1]}
        temperature = 1.0 if chosen["text"] == "resisting" else 0.0
        results += run(argparse.Namespace(**(vars(options) | chosen | {"temperatures": [temperature]})))
    return results


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare plain and drafted decoding at each temperature."""
    plain, drafted = load(options, LOOKUP), load(options, options.draft)
    results = []
    for temperature in options.temperatures:
        results.append(compare(plain, drafted, temperature, options))
        print(results[-1], flush=True)
    plain.close()
    drafted.close()
    return results


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
    parser.add_argument("--strategy", choices=STRATEGIES, default="hetegen")
    parser.add_argument("--text", choices=TEXTS, default="questions")
    parser.add_argument("--settings", type=int, nargs="*", choices=range(1, len(SETTINGS) + 1))
    options = parser.parse_args()
    print(json.dumps({"results": judged(options) if options.settings else run(options)}))


if __name__ == "__main__":
    main()
