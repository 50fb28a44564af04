"""Measures every storage of the engine on one model: bytes, quality, and decoding speed.

    python -m tests.bench.storages FOLDER|shape:NAME [--text FILE] [--windows 8] [--storages all]

With a text: perplexity, agreement and divergence (KL) against the weights as stored, over the first windows of 512
tokens. All linears have the one storage; `bf16`, `int8 format` and `int4 format` are the formats that users choose, the
last one a mixture. Storages that come from files are rounded to nearest here; programs that write such files search for
better scales. A shape's rows repeat, so it is for speed only. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from core.commands.arguments import size
from core.events import NO_DRAFT, LoadOptions
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight, pack
from core.model.linear_weights import matrices, matrix_names
from core.model.model_source import Source, open_source
from core.model.spec_cache import specification_of
from core.runtime import loader
from core.runtime.loaded_model import LoadedModel
from core.runtime.quality import Tally, foretold, windows
from core.spec import COARSE_COLUMNS, LAYOUTS, FormatWish, Layout, ModelSpec, Storage

OWN: tuple[Storage, ...] = ("int8", "int6", "int4")
BROUGHT: dict[Storage, tuple[str, int, int]] = {
    "int8g32": ("Q8_0", -127, 127), "int6g32": ("Q5_0", -16, 15), "int6g32m": ("Q5_1", 0, 31),
    "int6k32m": ("Q5_K", 0, 31), "int6k16": ("Q6_K", -32, 31), "int6k16m": ("Q5_K and Q6_K", 0, 63),
    "int4g32": ("Q4_0", -8, 7), "int4g32b": ("w4a16, groups of 32", -8, 7), "int4g32m": ("Q4_1", 0, 15),
    "int4g32w": ("GPTQ, groups of 32", 0, 15),
    "int4g128w": ("GPTQ, groups of 128", 0, 15), "int4k16": ("Q3_K", -4, 3), "int4k16m": ("Q2_K", 0, 3),
    "iq4nl": ("IQ4_NL", 0, 15), "iq4xs": ("IQ4_XS", 0, 15), "mxfp4": ("MXFP4", 0, 15), "nvfp4": ("NVFP4", 0, 15),
    "nvfp4w": ("NVFP4, two scales", 0, 15), "nf4": ("nf4", 0, 15), "fp8": ("FP8 by 128 columns", -448, 448),
}  # fmt: skip
"""The format that brings each storage, and its least and greatest code."""
PROMPT, TOKENS = 128, 48
SAMPLE_ROWS = 16
"""This many rows of a shape's matrices are rounded, then repeated."""


def encoded(storage: Storage, weight: Tensor) -> QuantizedWeight:
    """Round `weight` (N, K) to the nearest value of the storage."""
    if storage in OWN:
        return quantize(weight, storage)
    layout, (_, least, most) = LAYOUTS[storage], BROUGHT[storage]
    columns = weight.shape[1]
    groups = F.pad(weight.float(), (0, -columns % layout.width)).view(len(weight), -1, layout.group)
    low = groups.amin(2).clamp(max=0) if layout.minimum else None
    scales, wide = _kept(_steps(groups, low, layout, storage, least, most), layout)
    minimums, lowest = (None, torch.zeros(())) if low is None else _kept(low, layout)
    values = (groups - lowest[..., None]) * torch.where(wide == 0, 0, 1 / wide)[..., None]
    if layout.floats:
        return pack(storage, values.view(len(weight), -1).to(torch.float8_e4m3fn), scales, None, columns)
    codes = _nearest(values, layout.codes) if layout.codes else values.round().clamp(least, most)
    return pack(storage, codes.view(len(weight), -1).to(torch.int8), scales, minimums, columns)


def _steps(groups: Tensor, low: Tensor | None, layout: Layout, storage: Storage, least: int, most: int) -> Tensor:
    """Return the step size of each group's codes, (N, groups)."""
    if low is not None:
        return (groups.amax(2) - low) / (most - least)
    if layout.codes:
        steps = groups.abs().amax(2) / max(map(abs, layout.codes))
        return torch.exp2(steps.log2().ceil()) if storage == "mxfp4" else steps
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))[..., 0]
    return extreme.abs() / most if least == -most else extreme / least


def _kept(numbers: Tensor, layout: Layout) -> tuple[Any, Tensor]:
    """Return scales or minimums (N, groups) as `pack` takes them, and their rounded values."""
    if layout.scale != "fine":
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[layout.scale]
        return numbers.to(kind), numbers.to(kind).float()
    shared = COARSE_COLUMNS // layout.group
    runs = F.pad(numbers, (0, -numbers.shape[1] % shared)).view(len(numbers), -1, shared)
    factors = (runs.abs().amax(2) / 127).half()
    spread = factors.float().repeat_interleave(shared, 1)[:, : numbers.shape[1]]
    fine = torch.where(spread == 0, 0, numbers / spread).round().clamp(-127, 127)
    return (fine.to(torch.int8), factors), fine * spread


def _nearest(values: Tensor, codes: tuple[int, ...]) -> Tensor:
    """Return the indices of the nearest codes."""
    levels, order = torch.tensor(codes).float().sort()
    return order[torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)]


class Encoded(Mapping[str, QuantizedWeight]):
    """All linears of a filled model in one storage, created on access."""

    def __init__(self, source: Source, spec: ModelSpec, storage: Storage) -> None:
        self._source, self._storage = source, storage
        self._linears = {name: linear for linear in spec.linears for name in matrix_names(linear.name, linear.experts)}

    def __getitem__(self, name: str) -> QuantizedWeight:
        linear = self._linears[name]
        whole = list(matrices(self._source.module, linear))[matrix_names(linear.name, linear.experts).index(name)]
        if self._source.folder is not None:
            return encoded(self._storage, whole)
        sample = encoded(self._storage, whole[:SAMPLE_ROWS])
        parts = [part.repeat(-(-len(whole) // SAMPLE_ROWS), *[1] * (part.dim() - 1)) for part in sample.tensors]
        return replace(sample, shape=(len(parts[0]), whole.shape[1]), data=parts[0], scales=parts[1]).rows(
            0, len(whole)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def __len__(self) -> int:
        return len(self._linears)


def loaded(name: str, wanted: str, options: LoadOptions) -> LoadedModel:
    """Load the model in one of our formats ('int4 format'), or with all linears in one storage."""
    if wanted.endswith(" format"):
        *_, model = loader.load_model(name, replace(options, format=cast(FormatWish, wanted.split()[0])))
    else:
        storage = cast(Storage, wanted)
        source = open_source(name)
        spec = specification_of(source)
        source = replace(
            source, files=(), stored={linear.name: storage for linear in spec.linears}, stored_as=storage,
            packed=Encoded(source, spec, storage),
        )  # fmt: skip
        with patch.object(loader, "open_source", lambda _: source), patch.object(loader, "untied", lambda *_: ()):
            *_, model = loader.load_model(name, options)
    assert isinstance(model, LoadedModel)
    return model


def decode_rate(model: LoadedModel) -> float:
    """Return tokens/s of the median token after a prompt."""
    model.cache.reset()
    model.model.forward(list(range(1, PROMPT)), model.cache)
    times = []
    for token in range(TOKENS):
        start = time.perf_counter()
        model.model.forward([token + 5], model.cache)
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


class Reference:
    """Predictions of the weights as stored."""

    def __init__(self, name: str, options: LoadOptions, text: Path, count: int) -> None:
        model = loaded(name, "bf16 format", options)
        assert model.tokenizer is not None
        self._windows = windows(model.tokenizer.encode(text.read_text(encoding="utf-8")))[:count]
        self._told = [foretold(model, window) for window in self._windows]
        model.close()

    def figures(self, model: LoadedModel) -> dict[str, float]:
        """Return another model's perplexity, agreement and divergence."""
        tally = Tally()
        for told, window in zip(self._told, self._windows, strict=True):
            tally.add(told, foretold(model, window), window)
        found = tally.quality
        return {"perplexity": round(found.perplexity, 3), "kl": round(found.kl, 5), "top1": round(found.top1, 4)}


def measured(name: str, wanted: str, options: LoadOptions, reference: Reference | None) -> dict[str, Any]:
    """Measure one row of the table."""
    model = loaded(name, wanted, options)
    brings = BROUGHT.get(cast(Storage, wanted), ("",))[0]
    nbytes = model.spec.weight_bytes(model.plan.format)
    bits = 8 * nbytes / sum(linear.parameters for linear in model.spec.linears)
    row = {"storage": wanted, "brought_by": brings, "megabytes": round(nbytes / 1e6, 1), "bits": round(bits, 2)}
    row |= reference.figures(model) if reference else {}
    row["decode_tok_s"] = round(decode_rate(model), 1)
    model.close()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--storages", default="all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ram", type=size)
    options = parser.parse_args()
    every = ["bf16 format", "int8 format", "int4 format", *OWN, *(one for one in LAYOUTS if one not in OWN)]
    wanted = every if options.storages == "all" else options.storages.split(",")
    load = LoadOptions(format="bf16", context=1024, threads=options.threads, ram=options.ram, draft=NO_DRAFT)
    reference = Reference(options.model, load, options.text, options.windows) if options.text else None
    rows = []
    for one in wanted:
        rows.append(measured(options.model, one, load, reference))
        print("  ".join(f"{value!s:>12}" for value in rows[-1].values()), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
