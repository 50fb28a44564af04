"""bitsandbytes' 4-bit formats nf4 and fp4, with or without double quantisation of the scales."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from core.spec import LAYOUTS, NF4
from core.weights.stored.coded import Coded
from core.weights.stored.settings import Parts, Settings
from core.weights.stored.words import nibbles

NF4_SCALE, HALF = 112.06, 0.5
"""The factor that rounds the levels to integers with the least error for normally distributed weights."""
USUAL = {"blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.0}


def nf4(parts: Parts, settings: Settings) -> Coded:
    """Decode nf4; the engine's code book approximates its levels by integers."""
    coded, book = four_bits(parts, settings), parts["book"]
    is_known = book.is_meta or torch.allclose(book.float() * NF4_SCALE, torch.tensor(NF4).float(), atol=HALF)
    keeps = is_known and coded.block[1] % LAYOUTS["nf4"].group == 0
    return replace(coded, unit=1 / NF4_SCALE, storage="nf4" if keeps else None)


def four_bits(parts: Parts, _: Settings) -> Coded:
    """Decode two weights per byte, the first in the high nibble, in blocks of the flattened weight. Raises
    ValueError."""
    values = nibbles(parts["codes"].flatten(), high_first=True)
    state = _state(parts["state"])
    shape = state.get("shape", [1, len(values)])
    if len(shape) != 2 or prod(shape) != len(values):
        raise ValueError(shape)
    # If blocks do not align with rows, each block is divided into runs that do.
    run = gcd(shape[1], state["blocksize"])
    spread = _scales(parts, state, state["blocksize"] // run)[: len(values) // run]
    book = parts["book"].float()
    return Coded(values.view(shape), spread.view(shape[0], -1), (1, run), book=book, flat="shape" not in state)


def _scales(parts: Parts, state: Mapping[str, Any], times: int) -> Tensor:
    """Return the blocks' scales, each repeated `times` times."""
    scales = parts["scales"]
    if scales.is_meta:
        return scales.new_empty(len(scales) * times)
    return _widened(parts, scales, state).repeat_interleave(times)


def _widened(parts: Parts, scales: Tensor, state: Mapping[str, Any]) -> Tensor:
    if "outer" not in parts:
        return scales.float()
    outer = parts["outer"].repeat_interleave(state["nested_blocksize"])[: len(scales)]
    inner: Tensor = parts["table"].float()[scales.int()]
    return inner * outer + float(state["nested_offset"])


def _state(content: Tensor) -> dict[str, Any]:
    """Parse the JSON stored beside each weight, converted to the expected types; defaults where it is not known."""
    said = {} if content.is_meta else json.loads(bytes(content.tolist()))
    found: dict[str, Any] = {name: type(usual)(said.get(name, usual)) for name, usual in USUAL.items()}
    if "shape" in said:
        found["shape"] = [int(size) for size in said["shape"]]
    if min(found["blocksize"], found["nested_blocksize"]) <= 0:
        raise ValueError(said)
    return found
