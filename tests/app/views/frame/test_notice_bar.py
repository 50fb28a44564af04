"""Notices leave by themselves only if they ask for nothing."""

import pytest
from pytestqt.qtbot import QtBot

from app.notices.notices import Notice
from app.settings.theme import Theme
from app.views.frame import notice_bar
from app.views.frame.notice_bar import NoticeBar

INFORMS = Notice("Imported", "Three conversations were added.", "info")
ASKS = Notice("No model is loaded", "Load one to get an answer.", "info", "models", "Choose a model")
WARNS = Notice("A setting was not used", "The file could not be read.", "warning")


def test_a_notice_that_only_informs_leaves_and_others_stay(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice_bar, "LEAVES_AFTER_MS", 50)
    bar = NoticeBar(Theme())
    qtbot.addWidget(bar)
    for notice in (INFORMS, ASKS, WARNS):
        bar.add(notice)
    assert bar.notices == [INFORMS, ASKS, WARNS]
    qtbot.waitUntil(lambda: INFORMS not in bar.notices)
    assert bar.notices == [ASKS, WARNS]
