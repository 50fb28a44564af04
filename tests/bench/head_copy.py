"""Measures what the coarse copy of the output head costs in quality, computed as in decoding.

    python -m tests.bench.head_copy FOLDER TEXT [--windows 8] [--formats int8 int4] [--again 1024 2048 4096]

The text is read in windows of 512 tokens, as by `core quality`, and the first quarter is not counted. The final states
are then multiplied with the head one position at a time, in full, and by the copy followed by a part of the head.
Prints perplexity, agreement and divergence (KL) against the weights as stored, how many logits come from the head
itself, and how often the most likely token is not the full head's: `missed`, or `tied` if its two best are equal. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.events import NO_DRAFT, LoadOptions
from core.kernels.coarse_head import CoarseHead
from core.kernels.matmul import host_matmul
from core.kernels.native_library import native
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.model.model_source import open_source
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.runtime.quality import Tally, foretold, windows
from core.spec import HEAD_COPY, FormatWish


def opened(folder: str, format: FormatWish) -> LoadedModel:
    """Load the model in this format, without a head copy and without drafting."""
    options = LoadOptions(format=format, context=1024, draft=NO_DRAFT, whole_head=True)
    return next(step for step in load_model(folder, options) if isinstance(step, LoadedModel))


def states(model: LoadedModel, window: list[int]) -> Tensor:
    """Return the head's inputs for every counted position, (positions, K)."""
    seen: list[Tensor] = []
    head = model.source.module.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    try:
        foretold(model, window)
    finally:
        handle.remove()
    return torch.cat(seen)[len(window) // 4 : -1]


class Way:
    """One way to compute logits, and its results."""

    def __init__(self, compute: Any) -> None:
        self.compute = compute
        self.tally = Tally()
        self.again = self.missed = self.tied = 0

    def add(self, exact: Tensor, given: Tensor, whole: Tensor, window: list[int]) -> None:
        """Count one window. `whole`: the full head's logits, computed position by position."""
        made = torch.cat([self._logits(HostInput(one[None])) for one in given])
        self.tally.add(exact, made.float().log_softmax(1), window)
        other = made.argmax(1) != whole.argmax(1)
        best = whole.float().topk(2, 1).values
        self.missed += int((other & (best[:, 0] > best[:, 1])).sum())
        self.tied += int((other & (best[:, 0] == best[:, 1])).sum())

    def _logits(self, x: HostInput) -> Tensor:
        made = self.compute(x)
        if isinstance(made, Tensor):
            return made
        self.again += made[1]
        return made[0]

    @property
    def figures(self) -> dict[str, float]:
        """The results of all windows so far."""
        found = self.tally.quality
        return {
            "perplexity": round(found.perplexity, 4), "kl": round(found.kl, 6), "top1": round(found.top1, 5),
            "again": round(self.again / found.tokens), "missed": self.missed, "tied": self.tied,
            "positions": found.tokens,
        }  # fmt: skip


def ways(model: LoadedModel, again: list[int]) -> dict[str, Way]:
    """Return the ways: the full head, the copy alone, and the copy with N logits computed again."""
    module, spec = open_source(str(model.source.folder)), model.spec
    weight = module.weights.get(f"{spec.head}.weight", module.weights.get("model.embed_tokens.weight"))
    assert weight is not None
    copy = host_matmul(quantize(weight, HEAD_COPY))
    full = host_matmul(model.weights[spec.head][0].weight)
    library = native()
    assert library is not None

    def counted(head: CoarseHead) -> Any:
        return lambda x: head.counted(library, x)

    found = {"whole": Way(full), "copy": Way(copy)}
    return found | {str(one): Way(counted(CoarseHead(full, copy, one))) for one in again}


def compare(folder: str, text: str, format: FormatWish, count: int, again: list[int]) -> Iterator[tuple[str, Any]]:
    """Yield each way's figures."""
    exact, model = opened(folder, "bf16"), opened(folder, format)
    assert exact.tokenizer is not None
    made = ways(model, again)
    for window in windows(exact.tokenizer.encode(text))[:count]:
        told, given = foretold(exact, window), states(model, window)
        whole = torch.cat([made["whole"].compute(HostInput(one[None])) for one in given])
        for way in made.values():
            way.add(told, given, whole, window)
    yield from ((name, way.figures) for name, way in made.items())


def main() -> None:
    """Print a line for each format and way, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--formats", nargs="+", default=["int8", "int4"])
    parser.add_argument("--again", nargs="+", type=int, default=[1024, 2048, 4096])
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for format in args.formats:
        for name, figures in compare(args.folder, args.text.read_text("utf-8"), format, args.windows, args.again):
            found[f"{format} {name}"] = figures
            print(f"{format:6}{name:8}", *(f"{key} {value}" for key, value in figures.items()), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
