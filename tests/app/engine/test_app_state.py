"""All parts of the window show the same figures."""

from __future__ import annotations

from app.engine.app_state import State
from core.events import Loaded, Stats

LOADED = Loaded("m", "llama", "bf16", 2048, 1, 1, 0.1, can_chat=True)


def test_before_the_first_reply_only_the_context_is_known() -> None:
    assert State().figures is None
    assert State("ready", model=LOADED).figures == Stats(context_limit=2048)
    assert State("ready", model=LOADED, begun=True).figures is None


def test_the_speed_is_that_of_now_while_a_reply_is_written_and_its_mean_afterwards() -> None:
    stats = Stats(tok_s=9.0, mean_tok_s=11.0)
    shown = [State(phase, model=LOADED, stats=stats).figures for phase in ("replying", "ready")]
    assert [one.tok_s for one in shown if one] == [9.0, 11.0]
