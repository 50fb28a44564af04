from dataclasses import replace

import pytest
from pytestqt.qtbot import QtBot

from app.catalog.recommended import Recommended, recommended
from app.catalog.recommender import Recommender, best
from app.controllers.welcome import WelcomeController
from app.engine.app_state import State
from app.settings.theme import Theme
from app.views.chat.empty_chat import EmptyChat
from core.events import never
from core.hub.fit import Fit, Kind
from core.paths import assets
from core.spec import Prediction

SMALL = Recommended("a/small", "", 500_000_000, 1_000_000_000, "mit", gated=False, context=4096, config={"size": 1})
LARGE = replace(SMALL, id="a/large", parameters=8_000_000_000, config={"size": 8})
HUGE = replace(SMALL, id="a/huge", parameters=70_000_000_000, config={"size": 70})
GATED = replace(HUGE, id="a/gated", gated=True)


def fit_found(kinds: dict[int, tuple[Kind, float]]):  # type: ignore[no-untyped-def]
    def check_fit(config, tensors, wishes) -> Fit:  # type: ignore[no-untyped-def]
        kind, speed = kinds[config["size"]]
        return Fit(kind, "", "int8", 4096, 4096, Prediction(speed, speed, speed), "guess", (), 0, 0, 0)

    return check_fit


def test_the_largest_that_is_comfortable_wins() -> None:
    advice = best((SMALL, LARGE, HUGE, GATED), fit_found({1: ("fits", 90), 8: ("cpu_help", 9), 70: ("no", 0)}), never)
    assert advice is not None
    assert advice.model is LARGE


def test_where_none_is_comfortable_the_fastest_wins() -> None:
    advice = best((SMALL, LARGE), fit_found({1: ("slow", 3), 8: ("slow", 1)}), never)
    assert advice is not None
    assert advice.model is SMALL


def test_where_nothing_runs_nothing_is_said() -> None:
    assert best((HUGE,), fit_found({70: ("no", 0)}), never) is None


def test_it_is_asked_once_and_answers_from_its_thread(qtbot: QtBot) -> None:
    recommender = Recommender(fit_found({1: ("fits", 20)}), (SMALL,))
    with qtbot.waitSignal(recommender.found) as told:
        recommender.ask()
        recommender.ask()
    assert told.args[0].model is SMALL
    recommender.close()


@pytest.mark.parametrize("working", [State("replying", "m"), State("loading", "m")])
def test_it_waits_while_a_reply_is_written_or_a_model_loaded(qtbot: QtBot, working: State) -> None:
    judged: list[object] = []
    check_fit = fit_found({1: ("fits", 20)})
    recommender = Recommender(lambda *facts: (judged.append(facts), check_fit(*facts))[1], (SMALL,))
    empty = EmptyChat(Theme("light"))
    qtbot.addWidget(empty)
    welcome = WelcomeController(empty, recommender)
    welcome.on_state(working)
    recommender.ask()
    qtbot.wait(50)
    assert not judged
    with qtbot.waitSignal(recommender.found):
        welcome.on_state(State("ready", "m"))
    assert len(judged) == 1
    welcome.close()


def test_every_recommended_model_can_be_judged_by_its_facts() -> None:
    for model in recommended(assets()):
        assert {"hidden_size", "num_hidden_layers"} <= set(model.config)
