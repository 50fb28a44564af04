"""Blocks of every type are unpacked to the same numbers as by the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from core.weights.gguf.blocks import numbers, packed
from core.weights.gguf.types import TYPES, BlockType, common_storage

ROWS, BLOCKS = 37, 3
EXACT = [kind for kind in TYPES.values() if kind.storage]
MIXED = [("Q5_K", "Q6_K"), ("Q3_K", "Q4_K"), ("Q2_K", "Q6_K"), ("Q2_K", "Q3_K"), ("Q4_K", "Q5_K", "Q6_K")]
"""Types with fine scales for different groups, with and without minimums."""
CONVERTED = [kind for kind in TYPES.values() if not kind.storage and not kind.is_number]


def random_blocks(kind: BlockType) -> np.ndarray:
    """Return random bits, except for scales, which have ordinary magnitudes."""
    source = np.random.default_rng(0)
    raw = source.integers(0, 256, (ROWS, BLOCKS, kind.nbytes), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2),
              "Q5_K": (0, 2)}.get(kind.name, (0,))  # fmt: skip
    for at in halves:
        scale = source.normal(0, 1, (ROWS, BLOCKS, 1)).astype(np.float16)
        raw[:, :, at : at + 2] = scale.view(np.uint8)
    if kind.name == "MXFP4":
        raw[:, :, 0] = source.integers(0, 255, (ROWS, BLOCKS))
    if kind.name == "NVFP4":
        raw[:, :, :4] = source.integers(0, 127, (ROWS, BLOCKS, 4))
    return raw.reshape(ROWS, -1)


def reference(raw: np.ndarray, kind: BlockType) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name]))


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_packed_weights_are_those_of_the_file_to_the_last_bit(kind: BlockType) -> None:
    raw = random_blocks(kind)
    expected = reference(raw, kind)
    weight = packed([(torch.from_numpy(raw), kind)], kind.storage)
    assert weight.storage == kind.storage
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert torch.equal(numbers(torch.from_numpy(raw), kind, torch.float32), expected)


@pytest.mark.parametrize("names", [("Q4_K", "Q5_K"), ("Q4_0", "Q5_0"), ("Q5_1", "Q4_1"), ("Q3_K", "Q6_K"), *MIXED])
def test_rows_of_different_types_are_one_weight_without_rounding(names: tuple[str, ...]) -> None:
    kinds = [next(kind for kind in TYPES.values() if kind.name == name) for name in names]
    raws = [random_blocks(kind) for kind in kinds]
    storage = common_storage(kinds)
    assert storage is not None
    found = packed([(torch.from_numpy(raw), kind) for raw, kind in zip(raws, kinds, strict=True)], storage)
    expected = torch.cat([reference(raw, kind) for raw, kind in zip(raws, kinds, strict=True)])
    assert torch.equal(found.dequantize(torch.float32), expected)


@pytest.mark.parametrize("names", [("Q4_K", "Q5_0"), ("Q4_K", "IQ3_S"), ("Q4_0", "Q8_0"), ("Q5_K", "Q8_0")])
def test_rows_that_no_storage_keeps_together_have_none(names: tuple[str, str]) -> None:
    assert common_storage([kind for kind in TYPES.values() if kind.name in names]) is None


@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
def test_types_without_a_storage_are_converted(kind: BlockType) -> None:
    raw = random_blocks(kind)
    expected = reference(raw, kind)
    found = numbers(torch.from_numpy(raw), kind, torch.float32)
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_the_table_is_that_of_the_package() -> None:
    for number, kind in TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (theirs.name, gguf.GGML_QUANT_SIZES[theirs]) == (kind.name, (kind.elements, kind.nbytes))
