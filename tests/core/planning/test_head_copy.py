"""A copy of the output head in plans: when there is one, its memory, its price, and its sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.planning.planner import explain, place
from core.spec import HEAD_COPY, Budget, Format, Hardware, ModelSpec, Plan
from core.units import GIB
from tests.core.machines import DESKTOP, LAPTOP, model

QUANTISED: tuple[Format, ...] = ("int8", "int4")
SHAPE = "llama-3.2-1b"


def both(spec: ModelSpec, format: Format, hardware: Hardware = LAPTOP) -> tuple[Plan, Plan]:
    """Return the plan, and the one that was asked to do without a copy."""
    budget = Budget(format=format, context=2048)
    return place(spec, hardware, budget), place(spec, hardware, replace(budget, whole_head=True))


@pytest.mark.parametrize("format", QUANTISED)
def test_its_bytes_are_counted_and_its_speed_is_told(format: Format) -> None:
    spec = model(SHAPE)
    head = next(linear for linear in spec.linears if linear.name == spec.head)
    copied, whole = both(spec, format)
    assert copied.head_copy == head.nbytes(HEAD_COPY)
    assert whole.head_copy == 0
    assert copied.memory[0].weights - whole.memory[0].weights == copied.head_copy
    assert copied.load_peak - whole.load_peak == copied.head_copy
    saved = whole.bytes_per_token.cpu - copied.bytes_per_token.cpu
    assert 0.1 * spec.linear_bytes(head, format) < saved < 0.5 * spec.linear_bytes(head, format)
    assert copied.decode.likely > 1.03 * whole.decode.likely
    assert copied.check_s == whole.check_s
    assert copied.prefill.likely >= whole.prefill.likely


def test_weights_as_stored_and_small_heads_have_none() -> None:
    assert place(model(SHAPE), LAPTOP, Budget(format="bf16")).head_copy == 0
    spec = model(SHAPE)
    small = replace(spec, linears=tuple(replace(one, rows=min(one.rows, 8192)) for one in spec.linears))
    assert place(small, LAPTOP, Budget(format="int4")).head_copy == 0


def test_a_head_that_the_files_have_quantised_stays_exact() -> None:
    spec = model(SHAPE)
    linears = tuple(replace(one, stored="int6k16") if one.name == spec.head else one for one in spec.linears)
    assert place(replace(spec, linears=linears), LAPTOP, Budget(format="int8")).head_copy == 0


def test_it_is_left_out_where_memory_does_not_suffice() -> None:
    spec = model(SHAPE)
    copied, whole = both(spec, "int8")
    memory = whole.memory[0]
    for room, expected in ((copied.head_copy // 2, 0), (2 * copied.head_copy, copied.head_copy)):
        limit = memory.weights + memory.kv_cache + memory.workspace + room
        plan = place(spec, LAPTOP, Budget(format="int8", context=2048, ram=limit))
        assert (plan.fits, plan.head_copy) == ("yes", expected)
        assert plan.memory[0].used <= limit


@pytest.mark.parametrize("vram", [4 * GIB, None])
def test_beside_a_card_there_is_none(vram: int | None) -> None:
    plan = place(model("llama-3.1-8b"), DESKTOP, Budget(format="int8", vram=vram))
    assert plan.gpu == 0
    assert plan.head_copy == 0


def test_it_is_explained() -> None:
    spec = model(SHAPE)
    copied, whole = both(spec, "int4")
    said = [any("second time in 4 bits" in line for line in explain(plan, spec, LAPTOP)) for plan in (copied, whole)]
    assert said == [True, False]
