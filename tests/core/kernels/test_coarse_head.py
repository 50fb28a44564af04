"""An output head with a coarse copy that is read first: which logits are exact, with every instruction set and
torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.kernels.coarse_head import SPAN, CoarseHead
from core.kernels.matmul import ChosenMatmul, host_matmul, kernels_for
from core.kernels.native_abi import instruction_sets
from core.kernels.native_library import open_library
from core.kernels.prepared_input import HostInput
from core.kernels.quantize import quantize
from core.spec import HEAD_COPY, Storage

ROWS, COLUMNS, WANTED = 4123, 200, 64
HEADS: tuple[Storage, ...] = ("int6", "int8")


@pytest.fixture(params=[1, 3], ids=["one-thread", "three-threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def pair(storage: Storage, kernel: str, rows: int = ROWS) -> tuple[ChosenMatmul, ChosenMatmul]:
    """Make a head and its copy, both multiplied by the kernel of this name."""
    torch.manual_seed(rows)
    weight = torch.randn(rows, COLUMNS)
    full, copy = (host_matmul(quantize(weight, one), [kernel] * 4) for one in (storage, HEAD_COPY))
    assert full.by_bucket[0].name == copy.by_bucket[0].name == kernel
    return full, copy


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("storage", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_the_likeliest_are_the_heads_own_bit_for_bit(isa: str, storage: Storage, dtype: torch.dtype, m: int) -> None:
    full, copy = pair(storage, f"native-{isa}")
    x = torch.randn(m, COLUMNS).to(dtype)
    found, again = CoarseHead(full, copy, WANTED).counted(open_library(isa), HostInput(x))
    own, coarse = torch.cat([full(HostInput(row[None])) for row in x]), copy(HostInput(x))
    assert found.dtype is dtype
    for one, exact, other in zip(found, own, coarse, strict=True):
        least = other.float().topk(WANTED).values[-1]
        chosen = other.float() >= least
        assert one[chosen].equal(exact[chosen])
        assert ((one == exact) | (one == other)).all()
        assert one.argmax() == exact.argmax()
    assert m * WANTED <= again < m * 3 * WANTED


def test_without_our_library_the_same_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kernels.coarse_head.native", lambda: None)
    full, copy = pair("int6", "widened-fp32")
    x = torch.randn(3, COLUMNS)
    found, own, coarse = CoarseHead(full, copy, WANTED)(HostInput(x)), full(HostInput(x)), copy(HostInput(x))
    chosen = coarse >= coarse.topk(WANTED, 1).values[:, -1:]
    assert found[chosen].allclose(own[chosen], atol=1e-4)
    assert (found != coarse).sum(1).min() >= WANTED
    assert (found != coarse).sum(1).max() < 3 * WANTED


@pytest.mark.parametrize("kernel", [kernels_for("int8")[0].name, "widened-fp32"])
@pytest.mark.parametrize("rows", [1, SPAN - 1, SPAN + 1, 65])
def test_fewer_rows_than_are_wanted(kernel: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kernels.coarse_head.native", lambda: None)
    full, copy = pair("int8", kernel, rows)
    x = torch.randn(1, COLUMNS)
    found, own, coarse = (one(HostInput(x))[0] for one in (CoarseHead(full, copy, WANTED), full, copy))
    assert (found.isclose(own, atol=1e-4) | found.isclose(coarse, atol=1e-4)).all()
    assert found[coarse.argmax()].isclose(own[coarse.argmax()], atol=1e-4)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(isa: str, value: float) -> None:
    head = CoarseHead(*pair("int8", f"native-{isa}"), WANTED)
    x = torch.randn(1, COLUMNS)
    x[0, 3] = value
    assert head(HostInput(x)).isnan().all()


@pytest.mark.parametrize("isa", instruction_sets())
def test_equal_logits_are_all_computed_again(isa: str) -> None:
    full, copy = pair("int6", f"native-{isa}")
    x = torch.zeros(1, COLUMNS)
    found, again = CoarseHead(full, copy, WANTED).counted(open_library(isa), HostInput(x))
    assert again == ROWS
    assert found.equal(full(HostInput(x)))
