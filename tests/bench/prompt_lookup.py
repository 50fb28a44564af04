"""Measures prompt lookup on text that repeats its prompt and on text that does not.

    python -m tests.bench.prompt_lookup [--shape llama-3.2-1b] [--format int8] [--tokens 300] [--rounds 2]

Weights are random, so the sampler makes the model say a given text. Editing: the README again with every 30th word
changed. Other: CONTRIBUTING.md after the README. Tokens are the built-in guide's, so that words repeat as in real text.
Runs with and without lookup alternate. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from core.events import never
from core.generation.generate import DrawnToken, generate
from core.generation.prompt_lookup import PromptLookup
from core.generation.speculation import Speculation
from core.runtime.loaded_model import LoadedModel
from tests.bench.decode_profile import load

ROOT = Path(__file__).parents[2]
EVERY = 30


class Script:
    """A sampler that returns a given text, whatever the logits."""

    def __init__(self, prompt: Sequence[int], reply: Sequence[int]) -> None:
        self._all = [*prompt, *reply]

    def __call__(self, row: Tensor, ids: Sequence[int]) -> int:
        return self._all[len(ids)]


def texts(length: int) -> dict[str, tuple[list[int], list[int]]]:
    """Return prompt and reply as ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ROOT / "assets" / "builtin-model" / "tokenizer.json"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = readme.split(" ")
    edited = " ".join("changed" if number % EVERY == EVERY - 1 else word for number, word in enumerate(words))
    other = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    prompt = tokenizer.encode(readme).ids[: 2 * length]
    return {
        "editing": (prompt, tokenizer.encode(edited).ids[: length + 1]),
        "other": (prompt, tokenizer.encode(other).ids[: length + 1]),
    }


def rate(loaded: LoadedModel, prompt: list[int], reply: list[int], speculation: Speculation | None) -> float:
    """Return tokens/s for generating the reply."""
    sample: Any = Script(prompt, reply)
    said, began = 0, 0.0
    for step in generate(loaded.model, loaded.cache, prompt, sample, never, speculation=speculation):
        if not isinstance(step, DrawnToken):
            continue
        if said == 0:
            began = time.perf_counter()
        said += 1
        if said == len(reply):
            break
    return (said - 1) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--format", choices=("bf16", "int8", "int4"), default="int8")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    loaded = load(options.shape, options.format, options.threads)
    results = {}
    for name, (prompt, reply) in texts(options.tokens).items():
        rate(loaded, prompt, reply[:16], None)
        plain, guessed = [], []
        for _ in range(options.rounds):
            plain.append(rate(loaded, prompt, reply, None))
            guessed.append(rate(loaded, prompt, reply, Speculation([PromptLookup()])))
        ratio = statistics.median(one / other for one, other in zip(guessed, plain, strict=True))
        results[name] = {
            "tok_s": round(statistics.median(plain), 2),
            "with_lookup": round(statistics.median(guessed), 2),
            "ratio": round(ratio, 3),
        }
        print(name, results[name], flush=True)
    print(json.dumps({"format": options.format, **results}))


if __name__ == "__main__":
    main()
