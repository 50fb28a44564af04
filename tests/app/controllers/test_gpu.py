"""The graphics card page against a real server: offered, fetched, paused, tried, restarted, removed."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from app.controllers.gpu import GpuController
from app.notices.notices import Notice
from app.settings.theme import Theme
from app.views.settings.gpu_dialog import GpuDialog
from core.gpu_runtime.start import Attempt, Standing
from core.gpu_runtime.store import Runtime, TrialResult
from core.gpu_runtime.trial import attempt
from core.graphics.card import GraphicsCard
from core.hardware.untried import UNTRIED
from core.hub.client import Client
from core.hub.retry import Retries
from tests.app.scripted_engine import ScriptedEngine
from tests.core.gpu_runtime.wheels import CUDA, ROCM, VERSION, XPU, Index, Offer

QUICK = Retries(limit=1, first_s=0.01)


class Stage:
    """A controller and its dialog over a package index."""

    def __init__(self, index: Index, root: Path, cards: list[GraphicsCard], standing: Standing) -> None:
        self.index, self.runtime, self.notices = index, Runtime(root), list[Notice]()
        self.cards = cards
        self.desk = self.made(standing)
        self.window = QWidget()
        self.theme = Theme("light", 100)

    def begin(self, standing: Standing, pages: Sequence[str] = (), attempt: Attempt = attempt) -> None:
        """Return another controller, as after a start with this standing."""
        self.desk.close()
        self.desk = self.made(standing, pages, attempt)

    def made(self, standing: Standing, pages: Sequence[str] = (), attempt: Attempt = attempt) -> GpuController:
        desk = GpuController(
            self.runtime,
            standing,
            lambda: Client(self.index.address, retries=QUICK),
            pages or self.index.pages,
            lambda: self.cards,
            attempt,
        )
        desk.notice.connect(self.notices.append)
        return desk

    def open(self) -> GpuDialog:
        dialog = self.desk.open(self.theme, self.window)
        assert isinstance(dialog, GpuDialog)
        return dialog


@pytest.fixture
def stage(
    qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    monkeypatch.setattr("app.controllers.gpu.maker_of_torch", lambda: None)
    offer = getattr(request, "param", CUDA)
    with Index(offer) as index:
        made = Stage(index, tmp_path / "gpu-runtime", [offer.card], Standing())
        yield made
        made.desk.close()
        made.window.deleteLater()


def test_a_card_is_offered_once(qtbot: QtBot, stage: Stage) -> None:
    stage.desk.greet()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    assert [notice.title for notice in stage.notices] == ["Fake Card is not used yet"]
    assert stage.runtime.was_offered()
    assert not stage.index.ranges


NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="there PyTorch publishes nothing for AMD's cards")


@pytest.mark.parametrize(
    ("stage", "offer", "title"),
    [(CUDA, CUDA, "CUDA 13.0"), pytest.param(ROCM, ROCM, "ROCm 7.2", marks=NOT_ON_WINDOWS), (XPU, XPU, "Intel XPU")],
    indirect=["stage"],
    ids=lambda value: getattr(value, "tag", ""),
)
def test_fetched_tried_and_removed_by_keyboard_alone(qtbot: QtBot, stage: Stage, offer: Offer, title: str) -> None:
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    for press, then in (("look", "found"), ("fetch", "ready")):
        QTest.keyClick(dialog.buttons[press], Qt.Key.Key_Space)
        qtbot.waitUntil(lambda then=then: stage.desk.state.stage == then)
        if then == "found":
            assert "to download, about" in dialog.sentence.text()
            assert f"PyTorch {offer.version} for {title}, in" in dialog.details.text()
    assert dialog.headline.text() == "It works on Fake Card"
    with qtbot.waitSignal(stage.desk.restart_wished):
        QTest.keyClick(dialog.buttons["restart"], Qt.Key.Key_Space)
    QTest.keyClick(dialog.buttons["remove"], Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    assert not stage.runtime.root.exists()


def test_what_fails_is_said_and_can_be_gone_on_with(qtbot: QtBot, stage: Stage) -> None:
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    stage.desk.act("look")
    qtbot.waitUntil(lambda: stage.desk.state.stage == "found")
    stage.index.flipped = {"nvidia_cublas-13.1.1-py3-none-any.whl"}
    stage.desk.act("fetch")
    qtbot.waitUntil(lambda: stage.desk.state.stage == "paused")
    assert "arrived damaged" in dialog.sentence.text()
    stage.index.flipped = set()
    stage.desk.act("fetch")
    qtbot.waitUntil(lambda: stage.desk.state.stage == "ready")


def test_an_index_that_does_not_answer_is_said(qtbot: QtBot, stage: Stage) -> None:
    stage.begin(Standing(), pages=("http://127.0.0.1:9/whl/{tag}",))
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    stage.desk.act("look")
    qtbot.waitUntil(lambda: stage.desk.state.error is not None)
    assert stage.desk.state.stage == "offer"
    assert "127.0.0.1:9 cannot be reached" in dialog.sentence.text()


def test_a_runtime_that_does_not_work_says_why(qtbot: QtBot, stage: Stage) -> None:
    stage.index.wheels |= CUDA.wheels("raise ImportError('libcuda.so.1 is missing')")
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    stage.desk.act("look")
    qtbot.waitUntil(lambda: stage.desk.state.stage == "found")
    stage.desk.act("fetch")
    qtbot.waitUntil(lambda: stage.desk.state.stage == "unused")
    assert "libcuda.so.1 is missing" in dialog.sentence.text()
    assert set(dialog.buttons) == {"try", "remove"}


@pytest.mark.parametrize(
    ("cards", "headline", "words"),
    [
        ([], "No graphics card was found", "The processor does all the work."),
        (
            [GraphicsCard("NVIDIA", "New Card", "12.0", "560.1")],
            "New Card cannot be used",
            "Version 580 or newer is needed. Install a newer driver from NVIDIA",
        ),
        ([GraphicsCard("Intel", "UHD", "", "1.6")], "UHD cannot be used", "It is of an older kind."),
    ],
)
def test_where_nothing_can_be_done_it_is_said(
    qtbot: QtBot, stage: Stage, cards: list[GraphicsCard], headline: str, words: str
) -> None:
    stage.cards = cards
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage in ("hindered", "none"))
    assert dialog.headline.text() == headline
    assert words in dialog.sentence.text()
    assert not dialog.buttons
    assert not stage.notices


def test_a_card_that_this_torch_computes_on_is_not_offered(
    qtbot: QtBot, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.controllers.gpu.maker_of_torch", lambda: "NVIDIA")
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "built_in")
    assert dialog.headline.text() == "Fake Card is used"
    assert all(text in dialog.details.text() for text in UNTRIED)
    assert dialog.details.height() >= dialog.details.heightForWidth(dialog.details.width())


def test_another_makers_card_than_this_torch_computes_on_is_offered(
    qtbot: QtBot, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.controllers.gpu.maker_of_torch", lambda: "AMD")
    stage.desk.greet()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")


def test_one_that_is_installed_but_not_used_is_told_at_the_start(qtbot: QtBot, stage: Stage) -> None:
    stage.begin(Standing(VERSION, why="No NVIDIA card answers."))
    stage.desk.greet()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "unused")
    assert stage.notices[0].sentence == "No NVIDIA card answers."


@pytest.mark.parametrize(
    ("result", "stage_after", "title"),
    [
        (TrialResult(VERSION, "581", "Fake Card"), "ready", "The card can be used again"),
        (TrialResult(VERSION, "581", why="It crashed."), "unused", "The processor is used, not the card"),
    ],
)
def test_one_that_must_be_tried_with_a_new_driver_is_tried_beside_the_window(
    qtbot: QtBot, stage: Stage, result: TrialResult, stage_after: str, title: str
) -> None:
    stage.runtime.root.mkdir()
    stage.begin(Standing(VERSION, untried=True), attempt=lambda folder, driver: result)
    stage.desk.greet()
    qtbot.waitUntil(lambda: stage.desk.state.stage == stage_after)
    assert [notice.title for notice in stage.notices] == [title]
    assert stage.runtime.result() == result


@pytest.fixture
def unused(qtbot: QtBot, stage: Stage) -> GpuDialog:
    """The page of a runtime that is installed but not used."""
    stage.begin(Standing(VERSION, why="No NVIDIA card answers."))
    dialog = stage.open()
    qtbot.waitUntil(lambda: stage.desk.state.stage == "unused")
    return dialog


def test_removing_does_not_hold_up_the_window(
    qtbot: QtBot, stage: Stage, unused: GpuDialog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.runtime.root.mkdir()
    threads: list[int] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path: (threads.append(threading.get_ident()), rmtree(path)))
    QTest.keyClick(unused.buttons["remove"], Qt.Key.Key_Space)
    assert unused.headline.text() == "Removing…"
    assert not unused.buttons
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")
    assert not stage.runtime.root.exists()
    assert threads
    assert threading.get_ident() not in threads


def test_what_cannot_be_removed_is_said_and_can_be_tried_again(qtbot: QtBot, stage: Stage, unused: GpuDialog) -> None:
    stage.runtime.root.write_text("no folder")
    stage.desk.act("remove")
    qtbot.waitUntil(lambda: stage.desk.state.error is not None)
    assert stage.desk.state.stage == "unused"
    assert "The GPU runtime was not removed." in unused.sentence.text()
    stage.runtime.root.unlink()
    QTest.keyClick(unused.buttons["remove"], Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: stage.desk.state.stage == "offer")


def test_one_in_use_that_fails_at_the_start_is_told_and_remembered(
    qtbot: QtBot, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.runtime.root.mkdir()
    stage.runtime.keep_result(TrialResult(VERSION, CUDA.card.driver, "Fake Card"))
    stage.begin(Standing(VERSION, used=True, device="Fake Card"))
    monkeypatch.setattr("app.controllers.gpu.kernel", lambda: ("", "CUDA error: out of memory"))
    engine = ScriptedEngine()
    assert stage.desk.guarded(lambda: engine)() is engine
    qtbot.waitUntil(lambda: stage.desk.state.stage == "unused")
    assert stage.runtime.result() == TrialResult(VERSION, CUDA.card.driver, "", "CUDA error: out of memory")
    assert "out of memory" in stage.notices[0].sentence
    stage.desk.act("remove")
    assert stage.desk.state.stage == "leaving"
    assert stage.runtime.is_unwanted()
