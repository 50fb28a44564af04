"""Converted weights on disk are read back unchanged, and partial files are never found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight
from core.spec import Format
from core.weights.packed_cache import PackedCache, cache_key


def example(format: Format) -> QuantizedWeight:
    return quantize(torch.randn(48, 200), format)


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "deep" / "packed")
    written = {format: example(format) for format in ("int8", "int4", "bf16")}
    assert cache.open("key") is None
    with cache.write("key", "a model") as writer:
        for name, weight in written.items():
            writer.add(name, weight)
    found = cache.open("key")
    assert found is not None
    assert list(found) == list(written)
    assert found.title == "a model"
    for name, weight in written.items():
        assert found[name].format == weight.format
        assert found[name].shape == weight.shape
        assert all(torch.equal(a, b) for a, b in zip(found[name].tensors, weight.tensors, strict=True))
        assert all(part.data_ptr() % 64 == 0 for part in found[name].tensors)


def write_and_interrupt(cache: PackedCache) -> None:
    with cache.write("key", "a model") as writer:
        writer.add("w", example("int8"))
        raise KeyboardInterrupt


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(cache)
    assert cache.open("key") is None
    assert list(tmp_path.iterdir()) == []


def test_size_and_removal(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path)
    for key in ("one", "two"):
        with cache.write(key, key) as writer:
            writer.add("w", example("int4"))
    assert {entry.title for entry in cache.entries()} == {"one", "two"}
    assert cache.nbytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert cache.remove("one") > 0
    assert cache.remove("one") == 0
    assert [entry.key for entry in cache.entries()] == ["two"]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_as_none(tmp_path: Path, keep: int) -> None:
    cache = PackedCache(tmp_path)
    with cache.write("key", "a model") as writer:
        writer.add("w", example("int8"))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:keep])
    assert cache.open("key") is None
    assert cache.entries() == []
    with cache.write("key", "a model") as writer:
        writer.add("w", example("int8"))
    assert cache.open("key") is not None


def test_the_key_follows_the_files_and_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    key = cache_key([file], "int8")
    assert cache_key([file], "int8") == key
    assert cache_key([file], "int4") != key
    file.write_bytes(b"three")
    assert cache_key([file], "int8") != key
