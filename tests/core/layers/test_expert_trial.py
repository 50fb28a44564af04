"""A cache that slows tokens down pauses, and is tried again later."""

from __future__ import annotations

import pytest

from core.layers.expert_trial import AGAIN, BLOCK, BLOCKS, SETTLING, CacheTrial

TRIED = SETTLING + BLOCK * BLOCKS


def run(trial: CacheTrial, tokens: int, with_cache: float, without: float) -> list[bool]:
    rested = []
    for _ in range(tokens):
        rested.append(trial.rests)
        trial.note(without if trial.rests else with_cache)
    return rested


@pytest.mark.parametrize(("with_cache", "rests"), [(0.9, False), (1.0, False), (1.1, True)])
def test_the_faster_way_is_kept(with_cache: float, rests: bool) -> None:
    trial = CacheTrial()
    first = run(trial, TRIED, with_cache, 1.0)
    assert not any(first[:SETTLING])
    assert sum(first[SETTLING:]) == BLOCK * BLOCKS // 2
    assert run(trial, AGAIN - TRIED, with_cache, 1.0) == [rests] * (AGAIN - TRIED)


def test_what_loses_once_is_tried_again() -> None:
    trial = CacheTrial()
    run(trial, AGAIN, 2.0, 1.0)
    run(trial, TRIED, 0.5, 1.0)
    assert not trial.rests


def test_single_slow_tokens_decide_nothing() -> None:
    trial = CacheTrial()
    run(trial, SETTLING, 1.0, 1.0)
    for token in range(BLOCK * BLOCKS):
        trial.note(50.0 if token % (2 * BLOCK) == 1 else 1.1 if trial.rests else 1.0)
    assert not trial.rests
