"""Finds where greedy text first differs from llama.cpp's on the same GGUF file, and how close the choice was.

    python -m tests.bench.first_difference FILE.gguf [--tokens 128] [--threads 2]

Needs llama-cpp-python. Both engines get the same ids. For the first token that differs it prints the margins, by which
each engine's own choice exceeds the other's (logits); which choice transformers makes in fp32 with the same weights;
and the noise of both, the standard deviation of their logits from those. A margin as small as the noise is a draw. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from core.events import NO_DRAFT, LoadOptions, Message
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model

Logits: TypeAlias = npt.NDArray[np.float32]
QUESTIONS = (
    "What is a graphics card?",
    "Write a short story about a fox and a crow.",
    "List ten facts about the sea.",
    "Explain how bread is made, step by step.",
    "What is 12 times 7?",
    "Translate 'good morning' into French.",
)


class Ours:
    """This engine, decoding greedily token by token."""

    def __init__(self, file: Path, threads: int) -> None:
        *_, model = load_model(file, LoadOptions(format="bf16", context=1024, threads=threads, draft=NO_DRAFT))
        assert isinstance(model, LoadedModel)
        self._model = model

    def ids(self, question: str) -> list[int]:
        """Return a question's ids in the model's chat template."""
        assert self._model.tokenizer is not None
        return self._model.tokenizer.render([Message("user", question)])

    def begin(self) -> None:
        """Reset the context."""
        self._model.cache.reset()

    def read(self, ids: list[int]) -> Logits:
        """Append `ids` and return the logits after them (vocabulary,)."""
        found: Logits = self._model.model.forward(ids, self._model.cache)[-1].numpy()
        return found


class Theirs:
    """llama.cpp."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        self._model: Any = llama_cpp.Llama(
            str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
        )

    def begin(self) -> None:
        """Reset the context."""
        self._model.reset()

    def read(self, ids: list[int]) -> Logits:
        """Append `ids` and return the logits after them (vocabulary,)."""
        self._model.eval(ids)
        return np.array(self._model.scores[self._model.n_tokens - 1], dtype=np.float32)


class Exact:
    """transformers in fp32 on the dequantised file."""

    def __init__(self, file: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> Logits:
        """Return the logits after all of `ids` (vocabulary,)."""
        found: Logits = self._model(torch.tensor([ids])).logits[0, -1].numpy()
        return found


def compare(ours: Ours, theirs: Theirs, exact: Exact, question: str, count: int) -> dict[str, Any]:
    """Decode with both until they differ, for at most `count` tokens."""
    given = ours.ids(question)
    said = list(given)
    ours.begin()
    theirs.begin()
    for token in range(count):
        mine, other = ours.read(given), theirs.read(given)
        if mine.argmax() != other.argmax():
            return {"question": question, "differs_at": token} | judged(mine, other, exact.read(said))
        given = [int(mine.argmax())]
        said += given
    return {"question": question, "differs_at": None}


def judged(mine: Logits, other: Logits, exact: Logits) -> dict[str, Any]:
    """Return the margins where choices differ, and each engine's distance from exact arithmetic."""
    first, second = int(mine.argmax()), int(other.argmax())
    return {
        "our_margin": round(float(mine[first] - mine[second]), 3),
        "their_margin": round(float(other[second] - other[first]), 3),
        "exact_is": {first: "ours", second: "theirs"}.get(int(exact.argmax()), "another"),
        "our_noise": round(float((mine - exact).std()), 3),
        "their_noise": round(float((other - exact).std()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, theirs = Ours(options.file, options.threads), Theirs(options.file, options.threads)
    exact = Exact(options.file)
    found = [compare(ours, theirs, exact, question, options.tokens) for question in QUESTIONS]
    for one in found:
        print("  ".join(f"{name} {value}" for name, value in one.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
