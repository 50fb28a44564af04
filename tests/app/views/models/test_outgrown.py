"""A model that does not fit shows how to serve it elsewhere and connect."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.settings.theme import Theme
from app.views.models.outgrown import Outgrown
from core.hub.fit import Wishes
from tests.app.dialog_fixture import check_fit


def test_only_a_model_that_does_not_fit_shows_the_command(qtbot: QtBot) -> None:
    from PySide6.QtWidgets import QWidget

    parent = QWidget()
    qtbot.addWidget(parent)
    card = Outgrown(Theme("light"), parent)
    fit = check_fit({"model_type": "llama", "parameters": 70_000_000_000}, {}, Wishes())
    card.show_model("big/model", replace(fit, kind="slow"), None)
    assert card.isHidden()
    card.show_model("big/model", fit, None)
    assert not card.isHidden()
    assert card.command.text() == "vllm serve big/model --max-model-len 32768 --tensor-parallel-size 4"
    assert "4 graphics cards of 80 GB" in card.words.text()
    wished: list[bool] = []
    card.connect_wished.connect(lambda: wished.append(True))
    copy, connect = card.findChildren(QPushButton)
    copy.click()
    assert QGuiApplication.clipboard().text() == card.command.text()
    connect.click()
    assert wished == [True]
