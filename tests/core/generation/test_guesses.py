"""Acceptance statistics: drafts are long where they are accepted and cheap, and short elsewhere."""

from __future__ import annotations

from itertools import takewhile

import pytest

from core.generation.guesses import CheckTimes, Guesses
from core.planning.speculation import MOST_ROWS, Prices


def length(guesses: Guesses, confidence: float) -> int:
    """Return the length of a draft whose guesses have this confidence."""
    tried = takewhile(lambda count: guesses.pays([confidence] * count), range(1, MOST_ROWS))
    return 1 + sum(1 for _ in tried)


def test_drafts_grow_where_guesses_come_true_and_shrink_where_they_do_not() -> None:
    right, wrong = Guesses(Prices.even(0.4, 0.05)), Guesses(Prices.even(0.4, 0.05))
    before = length(right, 0.9)
    for _ in range(60):
        right.learn([0.9] * 4, 4, 1.6, 1.2)
        wrong.learn([0.9] * 4, 0, 1.6, 1.2)
    assert length(wrong, 0.9) == 1
    assert length(right, 0.9) >= max(before, 5)
    assert right.chance(0.9) > 0.97 > 0.1 > wrong.chance(0.9)


def test_each_confidence_is_learned_by_itself() -> None:
    guesses = Guesses()
    for number in range(200):
        guesses.learn([0.95, 0.2], 2 if number % 2 else 1, 0.9, 1.1)
    assert guesses.chance(0.95) > 0.97
    assert guesses.chance(0.2) == pytest.approx(0.5, abs=0.05)
    assert guesses.pays([0.95])
    assert not guesses.pays([0.2])


@pytest.mark.parametrize(("draft", "longer"), [(0.02, True), (1.1, False)])
def test_dear_guesses_make_short_drafts(draft: float, longer: bool) -> None:
    guesses = Guesses()
    for _ in range(20):
        guesses.learn([0.9] * 2, 2, 2 * draft, 1.1)
    assert (length(guesses, 0.9) == MOST_ROWS - 1) is longer


def test_what_comes_true_at_once_makes_long_drafts_soon() -> None:
    """A first check of one token that is late, as after a pause, does not keep drafts short."""
    guesses = Guesses(Prices.even(0.55, 0.08))
    guesses.learn([0.95], 1, 1.1, 1.6)
    for _ in range(4):
        count = length(guesses, 0.95)
        guesses.learn([0.95] * count, count, 0.5 * count, 1.12 + 0.04 * count)
    assert length(guesses, 0.95) == MOST_ROWS - 1


def test_a_further_token_costs_less_than_the_first_one() -> None:
    times = CheckTimes(Prices.even(0, 0.2))
    for number in range(60):
        times.add(1 + number % 5, 1.2 + 0.03 * (number % 5))
    assert times.of(4) - times.of(3) == pytest.approx(0.03, abs=0.02)


def test_a_thousand_checks_of_one_token_do_not_tell_what_further_ones_cost() -> None:
    times = CheckTimes(Prices.even(0, 0.08))
    for _ in range(1000):
        times.add(1, 1.08)
    assert times.of(2) - times.of(1) == pytest.approx(0.08, abs=1e-6)


def test_a_late_check_counts_little() -> None:
    times = CheckTimes(Prices.even(0, 0.05))
    times.add(7, 20.0)
    assert times.of(7) - times.of(6) < 0.2


def test_checks_of_a_few_tokens_tell_what_a_second_turn_of_the_kernels_costs() -> None:
    """All take a tenth longer than expected, so longer ones are expected to as well."""
    prices = Prices(0.0, (1.1, 1.3, 1.7, 4.1))
    times = CheckTimes(prices)
    for number in range(60):
        count = 1 + number % 7
        times.add(count, 1 + 1.1 * (prices.of_check(count) - 1))
    assert times.of(15) == pytest.approx(1 + 1.1 * 3.1, rel=0.01)
    assert times.of(8) - times.of(7) > 2 * (times.of(7) - times.of(6))


def test_where_rows_cost_nothing_checks_are_judged_all_the_same() -> None:
    times = CheckTimes(Prices(0.0, (1.0, 1.0, 1.0, 1.0)))
    for number in range(60):
        times.add(1 + number % 15, 1.0)
    assert times.of(15) == pytest.approx(1.0, abs=0.01)
