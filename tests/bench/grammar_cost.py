"""Measures the cost per token of JSON schema constraints: `python -m tests.bench.grammar_cost MODEL [--rounds 5]`.

Replies of equal length with and without a schema alternate. Prints the tokens per second of both, and the time spent in
the mask (counted in the engine's thread) as a share of the constrained reply's time per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from core.engine import Engine
from core.events import LoadOptions, Message, Request, Sampling, Stats
from core.generation.grammar import GrammarMask

TOKENS = 96
SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 50,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "here": {"type": "boolean"}},
                "required": ["name", "age", "here"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}


class Clock:
    """Counts the seconds spent in the mask's two calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return wrapped


def tokens_a_second(engine: Engine, schema: str, ends: tuple[int, ...]) -> float:
    """Return the speed of one reply of TOKENS tokens."""
    bias = () if schema else tuple((token, -100.0) for token in ends)
    sampling = Sampling(temperature=0.7, seed=1, max_new_tokens=TOKENS, logit_bias=bias)
    request = Request((Message("user", "Who is there? List all."),), sampling, json_schema=schema or None)
    stats = [event for event in engine.chat(request) if isinstance(event, Stats)][-1]
    return stats.mean_tok_s or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--format", default="auto")
    parser.add_argument("--ends", type=int, nargs="*", default=(2,), help="ids of the tokens that end a reply")
    asked = parser.parse_args()
    engine, clock = Engine(), Clock()
    for _ in engine.load(asked.model, LoadOptions(context=1024, format=asked.format)):
        pass
    schema, ends = json.dumps(SCHEMA), tuple(asked.ends)
    tokens_a_second(engine, schema, ends)  # the first reply builds the grammar's vocabulary
    GrammarMask.allow = clock.timed(GrammarMask.allow)  # type: ignore[method-assign]
    GrammarMask.accept = clock.timed(GrammarMask.accept)  # type: ignore[method-assign]
    free, held, share = [], [], []
    for _ in range(asked.rounds):
        free.append(tokens_a_second(engine, "", ends))
        clock.seconds = 0.0
        held.append(tokens_a_second(engine, schema, ends))
        share.append(clock.seconds / TOKENS * held[-1])
    f, h, s = map(statistics.median, (free, held, share))
    print(f"free {f:.1f}, held {h:.1f} tokens/s ({h / f:.3f}x); mask {s / h * 1e6:.0f} us, {s:.2%} of a token")
    engine.close()


if __name__ == "__main__":
    main()
