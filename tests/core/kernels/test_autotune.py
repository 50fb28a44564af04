"""The choice of kernels: what is timed, remembered, and used for untimed shapes."""

from __future__ import annotations

import json
from itertools import pairwise

import torch

from core.kernels import autotune
from core.kernels.autotune import KernelTable, Timing, measure, usable
from core.kernels.matmul import Kernel, host_matmul, kernels_for
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.kernels.quantized_weight import QuantizedWeight


def table(*timings: tuple[str, int, int, int, str, float]) -> KernelTable:
    return KernelTable(1, (), tuple(Timing(*timing) for timing in timings))


def test_measuring_times_every_candidate_and_survives_json() -> None:
    made = measure([("int8", 64, 128), ("bf16", 64, 128)])
    assert usable(made)
    names = made.names("int8", 64, 128)
    assert len(names) == 4
    assert set(names) <= {offer.name for offer in kernels_for("int8")}
    assert {t.candidate for t in made.timings if t.storage == "int8"} == {offer.name for offer in kernels_for("int8")}
    assert KernelTable.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert measure([("int8", 64, 128)], made) == made
    weight = quantize(torch.randn(64, 128), "int8")
    assert host_matmul(weight, names)(torch.randn(3, 128)).shape == (3, 64)


def test_the_fastest_is_used_unless_the_difference_is_noise() -> None:
    found = table(
        *[("int8", 64, 64, b, "first", 1.0) for b in range(4)],
        *[("int8", 64, 64, b, "second", 0.97 if b < 2 else 0.5) for b in range(4)],
    )
    assert found.names("int8", 64, 64) == ("first", "first", "second", "second")


def test_our_library_keeps_few_rows_where_others_are_hardly_faster() -> None:
    """Only then can all layers of a token be one call."""
    found = table(
        *[("bf16", 64, 64, b, "native-avx2", 1.0) for b in range(4)],
        *[("bf16", 64, 64, b, "linear", 0.9 if b != 1 else 0.8) for b in range(4)],
    )
    assert found.names("bf16", 64, 64) == ("native-avx2", "linear", "linear", "linear")


def test_the_nearest_shape_decides_for_others() -> None:
    small = [("int8", 64, 64, b, "small", 1.0) for b in range(4)]
    large = [("int8", 4096, 4096, b, "large", 1.0) for b in range(4)]
    found = table(*small, *large)
    assert found.names("int8", 100, 100)[0] == "small"
    assert found.names("int8", 150000, 3000)[0] == "large"
    assert found.names("int4", 64, 64) == ()
    assert found.rate("int8", 128, 64, 0) == 64 * 64
    assert found.rate("int4", 64, 64, 0) is None


def test_a_table_of_other_conditions_is_measured_anew() -> None:
    other = KernelTable(63, ("abacus",), (Timing("int8", 8, 8, 0, "beads", 1.0),))
    assert not usable(other)
    assert all(t.candidate != "beads" for t in measure([("int8", 8, 64)], other).timings)


def test_no_candidate_finds_in_the_cache_what_another_has_just_read() -> None:
    read: list[int] = []

    def record(weight: QuantizedWeight, x: HostInput, begin: int, end: int) -> torch.Tensor:
        read.append(int(weight.data[0, 0]))
        return x.x

    weights = [quantize(torch.full((1, 64), float(value)), "bf16") for value in range(5)]
    autotune.median_times([Kernel("one", record), Kernel("other", record)], weights, torch.ones(1, 64))
    assert all(read.index(value) == value for value in range(5))
    assert all(before != after for before, after in pairwise(read))
