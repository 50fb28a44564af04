"""Copy or compute, by expert: the fastest division, with card, link and CPU working concurrently."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.planning.expert_work import ExpertDivision, ExpertPrices, divide_experts, learned, learned_by_copying
from core.spec import BUCKET_TOKENS, ExpertRates, KernelRate

MB = 1 << 20
MEASURED = (1.0,) * len(BUCKET_TOKENS)
"""The CPU is as fast as expected."""


def rate(bytes_s: float, flops: float = 1e18) -> KernelRate:
    return KernelRate("int4", bytes_s, (flops,) * 4)


def prices(cpu: float, card: float, copy: float, flops: float = 1e18, **others: float) -> ExpertPrices:
    """Return the seconds of an expert of 1 MB on the CPU, on the card, and for its copy."""
    rates = ExpertRates(rate(MB / cpu, flops), rate(MB / card), copy / MB, **others)
    return ExpertPrices(rates, MB, MB, MEASURED)


def test_a_slow_link_copies_nothing_and_a_fast_one_all() -> None:
    chosen = dict.fromkeys(range(8), 1)
    assert divide_experts(chosen, {0, 1}, prices(1, 0.1, 9)) == ExpertDivision((0, 1), (), tuple(range(2, 8)))
    assert divide_experts(chosen, {0, 1}, prices(9, 0.01, 0.1)) == ExpertDivision((0, 1), tuple(range(2, 8)), ())


def test_between_them_link_and_processor_end_at_the_same_time() -> None:
    found = divide_experts(dict.fromkeys(range(9), 1), set(), prices(1, 0.01, 2))
    assert (len(found.copied), len(found.computed)) == (3, 6)


def test_what_is_copied_is_what_most_tokens_need() -> None:
    found = divide_experts({0: 1, 1: 64, 2: 2, 3: 64}, set(), prices(1e-3, 1e-3, 2, flops=MB * 32))
    assert set(found.copied) == {1, 3}


def test_copies_that_slow_the_processor_down_must_be_worth_that() -> None:
    chosen = dict.fromkeys(range(8), 1)
    assert divide_experts(chosen, set(), prices(1, 0.01, 2)).copied
    assert not divide_experts(chosen, set(), prices(1, 0.01, 2, slower=1.6)).copied
    assert not divide_experts(chosen, set(), prices(1, 0.01, 2), can_copy=False).copied


def test_a_card_no_faster_than_the_processor_shares_what_it_holds() -> None:
    found = divide_experts(dict.fromkeys(range(8), 1), set(range(7)), prices(1, 1, 99))
    assert (len(found.held), len(found.computed)) == (4, 4)


def test_a_card_on_the_processors_own_cores_gains_nothing_by_copies() -> None:
    rates = replace(prices(9, 0.01, 0.1).rates, apart=False)
    found = divide_experts({0: 1, 1: 1}, {0}, ExpertPrices(rates, MB, MB, MEASURED))
    assert found == ExpertDivision((0,), (), (1,))


def test_calls_for_all_that_is_held_are_counted_once_where_they_are_made_once() -> None:
    """With eight experts of 0.01 s and launches of 0.1 s, a single expert is no faster than on the CPU, with 0.15 s."""
    chosen = dict.fromkeys(range(8), 1)
    each = divide_experts(chosen, set(chosen), prices(0.15, 0.01, 99, call_s=0.1))
    at_once = divide_experts(chosen, set(chosen), prices(0.15, 0.01, 99, call_s=0.1, at_once_s=0.2))
    assert len(each.held) < 5
    assert len(at_once.held) >= 6
    many = dict.fromkeys(range(8), 64)
    assert len(divide_experts(many, set(many), prices(0.15, 0.01, 99, call_s=0.1, at_once_s=0.2)).held) < 5


def test_calls_that_few_experts_are_not_worth_are_not_made() -> None:
    assert divide_experts({0: 1}, {0}, prices(0.1, 0.01, 99, at_once_s=0.4)).held == ()
    assert divide_experts({0: 1}, {0}, prices(1.0, 0.01, 99, at_once_s=0.4)).held == (0,)


def test_nothing_is_copied_before_the_processor_was_measured_with_as_many_tokens() -> None:
    """It is three times as fast as its kernels' rates say, so that what was expected to gain does not."""
    chosen, given = dict.fromkeys(range(9), 1), replace(prices(1, 0.01, 1), paces=(None,) * len(BUCKET_TOKENS))
    assert divide_experts(chosen, set(), replace(given, paces=MEASURED)).copied
    assert divide_experts(chosen, set(), given).computed == tuple(range(9))
    known = learned(given, [1] * 9, 3.0)
    assert known.cpu(1) == pytest.approx(1 / 3)
    assert len(divide_experts(chosen, set(), known).copied) < 4
    assert not divide_experts(dict.fromkeys(range(9), 30), set(), known).copied


def test_copies_that_take_longer_than_expected_are_not_made_again_for_a_while() -> None:
    chosen, known = dict.fromkeys(range(9), 17), prices(1, 0.01, 2)
    found, before = divide_experts(chosen, set(), known), known
    assert found.copied
    assert found.expected == pytest.approx(6, rel=0.01)
    for _ in range(3):
        known = learned_by_copying(known, found.expected, 2 * found.expected)
    assert known.copying == pytest.approx(2, rel=0.1)
    assert not divide_experts(chosen, set(), known).copied
    for _ in range(100):
        known = learned(known, [17] * 9, 9.0)
    assert divide_experts(chosen, set(), known) == divide_experts(chosen, set(), before)


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_what_the_processor_took_is_expected_of_it_next_time(seconds: float) -> None:
    known = prices(1, 0.1, 9)
    for _ in range(100):
        known = learned(known, [1], seconds)
    assert known.cpu(1) == pytest.approx(seconds, rel=0.01)
    assert known.cpu(4) == 1


def taken(found: ExpertDivision, tokens: dict[int, int], given: ExpertPrices) -> float:
    on_cpu = sum(given.cpu(tokens[one]) for one in found.computed) * (given.rates.slower if found.copied else 1)
    on_card = sum(given.card(tokens[one]) for one in (*found.held, *found.copied))
    last = given.card(tokens[found.copied[-1]]) if found.copied else 0.0
    return max(on_cpu, on_card, len(found.copied) * given.copy + last)


@given(
    st.dictionaries(st.integers(0, 31), st.integers(1, 100), min_size=1, max_size=16),
    st.sets(st.integers(0, 31)),
    st.tuples(*[st.floats(0.01, 10)] * 3),
    st.floats(1, 2),
)
def test_each_chosen_one_is_computed_once_and_never_later_than_without_copies(
    tokens: dict[int, int], held: set[int], seconds: tuple[float, float, float], slower: float
) -> None:
    given = prices(*seconds, flops=MB * 8, slower=slower)
    found = divide_experts(tokens, held, given)
    assert sorted((*found.held, *found.copied, *found.computed)) == sorted(tokens)
    assert set(found.held) <= held
    assert not held & set(found.copied)
    plain = ExpertDivision(tuple(held & set(tokens)), (), tuple(set(tokens) - held))
    assert taken(found, tokens, given) <= taken(plain, tokens, given) * 1.0001
