"""The model dialog on a fake Hub, with real threads, downloads and a cache; and its words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QEvent, QPoint, QPointF, Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QMessageBox, QPlainTextEdit, QStyleOptionViewItem, QTextBrowser
from pytestqt.qtbot import QtBot

from app.catalog.downloads import Transfer
from app.catalog.recommended import recommended
from app.settings.theme import DARK, LIGHT, contrast
from app.views.controls.inputs import ChoiceBox
from app.views.models import words
from app.views.models.details import possible
from app.views.models.model_list import FOUND, HERE, RECOMMENDED, UNFINISHED
from app.views.models.rows import RowRole
from core.errors import DiskFull
from core.hub.fit import Wishes
from core.hub.installed import installed
from core.hub.progress import Progress
from core.paths import assets
from tests.app.dialog_fixture import DialogStage, check_fit, hub_repos, kind_of
from tests.app.find import find
from tests.core.hub.fake_hub import Double, Fault

ID = "heron/heron-7b-instruct"
SLOW = 2e4
"""Bytes per second and file: a download takes half a minute, and is not done before the window knows of its beginning,
also on a busy machine."""
GATED = "heron/gated-8b"


@pytest.fixture
def hub() -> Iterator[Double]:
    with Double(*hub_repos()) as running:
        yield running


@pytest.fixture
def make(qtbot: QtBot, tmp_path: Path) -> Iterator[Callable[..., DialogStage]]:
    stages: list[DialogStage] = []

    def build(hub: Double | None, **more: Any) -> DialogStage:
        stages.append(DialogStage(hub, tmp_path, recommended(assets()), **more))
        return stages[-1]

    yield build
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(hub: Double, make: Callable[..., DialogStage], qtbot: QtBot) -> DialogStage:
    made = make(hub)
    made.dialog.show()
    return made


def look_at(stage: DialogStage, qtbot: QtBot, id: str) -> None:
    """Search for a model, select it, and wait until everything is known."""
    stage.dialog.search.setText(id)
    qtbot.waitUntil(lambda: stage.dialog.details.shown == id)
    qtbot.waitUntil(lambda: details_of(stage).asking is False)


def details_of(stage: DialogStage) -> Any:
    return stage.dialog.details.details or replace_me


replace_me = type("Nothing", (), {"asking": True})()


def headings(stage: DialogStage) -> list[str]:
    model = stage.dialog.rows
    rows = (model.index(at) for at in range(model.rowCount()))
    return [str(index.data()) for index in rows if index.data(RowRole) is None]


def ids(stage: DialogStage) -> list[str]:
    model = stage.dialog.rows
    rows = (model.index(at).data(RowRole) for at in range(model.rowCount()))
    return [row.id for row in rows if row is not None]


def text_of(stage: DialogStage) -> str:
    """Return all visible text of the details."""
    from PySide6.QtWidgets import QLabel

    labels = stage.dialog.details.findChildren(QLabel)
    return "\n".join(label.text() for label in labels if label.isVisibleTo(stage.dialog))


def card_of(stage: DialogStage) -> str:
    """Return the model card as shown."""
    edits = [*stage.dialog.details.findChildren(QTextBrowser), *stage.dialog.details.findChildren(QPlainTextEdit)]
    return "\n".join(edit.toPlainText() for edit in edits if edit.isVisibleTo(stage.dialog) and edit.toPlainText())


def buttons_of(stage: DialogStage) -> list[str]:
    return [id for id, button in stage.dialog.details.buttons.items() if button.isVisibleTo(stage.dialog)]


def phase_of(stage: DialogStage, id: str) -> str:
    state = stage.downloads.transfer(id)
    return state.phase if state else ""


def test_first_run_recommends_models_with_verdicts(make: Callable[..., DialogStage], qtbot: QtBot) -> None:
    stage = make(None)
    stage.dialog.show()
    assert headings(stage) == [RECOMMENDED]
    assert len(ids(stage)) == len(recommended(assets()))
    assert ids(stage)[0] == recommended(assets())[0].id
    qtbot.waitUntil(lambda: stage.dialog.collection.is_judged)
    sizes = {entry.id: entry.parameters for entry in recommended(assets())}
    kinds = [stage.dialog.rows.row(stage.dialog.rows.index_of(id)).fit.kind for id in ids(stage)]
    well = [id for id, kind in zip(ids(stage), kinds, strict=True) if kind in ("fits", "cpu_help")]
    assert ids(stage)[: len(well)] == sorted(well, key=sizes.__getitem__, reverse=True)
    assert kinds[len(well) :] == ["slow"] * (len(kinds) - len(well)) != []
    assert "Choose a model" in text_of(stage)
    stage.dialog.list.setCurrentIndex(stage.dialog.rows.index_of("HuggingFaceTB/SmolLM2-360M-Instruct"))
    qtbot.waitUntil(lambda: "Offline mode is on" in text_of(stage))
    assert "Fits: about 41–52 tokens/\u2060s" in text_of(stage)
    assert "The speed is measured on this computer." in text_of(stage)


def test_nobody_is_asked_before_a_model_is_chosen(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    last = stage.dialog.rows.index(stage.dialog.rows.rowCount() - 1)
    qtbot.waitUntil(lambda: last.data(RowRole).fit is not None)
    assert hub.seen == []


def test_recommended_facts_agree_with_their_dimensions() -> None:
    entries = recommended(assets())
    assert [entry.parameters for entry in entries] == sorted(entry.parameters for entry in entries)
    assert len({entry.id for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.summary.endswith(".")
        # bf16, plus at most an output head that is stored although it is tied to the embedding.
        extra = 2 * entry.config["vocab_size"] * entry.config["hidden_size"]
        assert entry.download_bytes in (2 * entry.parameters, 2 * entry.parameters + extra)
        assert entry.config["max_position_embeddings"] == entry.context


def test_search_shows_verdicts_of_all_kinds(stage: DialogStage, qtbot: QtBot) -> None:
    stage.dialog.search.setText("heron")
    qtbot.waitUntil(lambda: headings(stage) == [FOUND])
    assert ids(stage)[0] == ID

    def kinds() -> set[str]:
        rows = (stage.dialog.rows.row(stage.dialog.rows.index_of(id)) for id in ids(stage))
        return {row.fit.kind for row in rows if row and row.fit}

    qtbot.waitUntil(lambda: kinds() == {"fits", "cpu_help", "slow", "no"})
    stage.dialog.search.setText("")
    assert headings(stage) == [RECOMMENDED]


def test_details_before_the_download(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    shown = text_of(stage)
    assert "7.6 billion parameters" in shown
    assert "Runs with CPU help: about 18–24 tokens/\u2060s" in shown, "no line break divides the rate"
    assert "15.2 GB of weights as stored, 7.6 GB in memory after conversion to 8\u2011bit." in shown
    assert "Main memory: 9.0 GB needed, 20.5 GB free" in shown
    qtbot.waitUntil(lambda: "See the paper." in card_of(stage))  # a busy machine lays it out in several steps
    card = card_of(stage)
    assert card.startswith("Heron 7B")
    assert "print('<b>kept</b>')" in card
    assert "logo" not in card
    assert buttons_of(stage) == ["download"]
    # Headers only, no weights.
    assert max(hub.bytes_sent(path) for path in hub.sent) < 300_000
    assert not [path for path in hub.paths("files") if "logo" in path]


def test_other_wishes_are_judged_at_once(stage: DialogStage, qtbot: QtBot) -> None:
    look_at(stage, qtbot, ID)
    pane = stage.dialog.details
    before = len(stage.access.client().endpoint) and len(stage.dialog.rows.index_of(ID).data(RowRole).facts)
    find(pane, ChoiceBox, "Weight format").setCurrentIndex(1)
    assert pane.wishes() == Wishes("bf16", None)
    qtbot.waitUntil(lambda: "used as stored (bf16)" in text_of(stage))
    find(pane, ChoiceBox, "Context").setCurrentIndex(3)
    qtbot.waitUntil(lambda: "Context: 8,192 of 131,072" in text_of(stage))
    assert before


def test_download_pause_resume_use(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    hub.rate = SLOW
    stage.dialog.details.buttons["download"].click()
    assert buttons_of(stage) == ["pause", "cancel"]
    row = lambda: stage.dialog.rows.row(stage.dialog.rows.index_of(ID))  # noqa: E731
    qtbot.waitUntil(lambda: row().share > 0.02 and "/s" in row().status)
    stage.dialog.details.buttons["pause"].click()
    qtbot.waitUntil(lambda: not stage.downloads.busy)
    assert phase_of(stage, ID) == "paused"
    assert row().status.startswith("Paused at ")
    assert not any(model.complete for model in installed(stage.cache))
    stage.dialog.search.setText("")
    assert headings(stage) == [UNFINISHED, RECOMMENDED]
    hub.rate = None
    stage.dialog.list.setCurrentIndex(stage.dialog.rows.index_of(ID))
    stage.dialog.details.buttons["resume"].click()
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "done")
    qtbot.waitUntil(lambda: headings(stage) == [HERE, RECOMMENDED])
    stage.dialog.list.setCurrentIndex(stage.dialog.rows.index_of(ID))
    qtbot.waitUntil(lambda: "use" in buttons_of(stage))
    with qtbot.waitSignal(stage.dialog.chosen) as chosen:
        stage.dialog.details.buttons["use"].click()
    (model,) = installed(stage.cache)
    assert chosen.args == [str(model.path)]
    assert not stage.dialog.isVisible()


def test_download_goes_on_after_a_restart(make: Callable[..., DialogStage], qtbot: QtBot, hub: Double) -> None:
    first = make(hub)
    first.dialog.show()
    look_at(first, qtbot, ID)
    hub.rate = SLOW
    first.dialog.details.buttons["download"].click()
    qtbot.waitUntil(
        lambda: bool((state := first.downloads.transfer(ID)) and state.progress and state.progress.fetched > 60_000),
    )
    first.downloads.close()
    hub.rate = None
    second = make(hub)
    second.dialog.show()
    qtbot.waitUntil(lambda: headings(second) == [UNFINISHED, RECOMMENDED])
    row = second.dialog.rows.row(second.dialog.rows.index_of(ID))
    assert row is not None
    assert row.status.startswith("Paused at ")
    second.dialog.delegate.toggled.emit(ID)
    qtbot.waitUntil(lambda: phase_of(second, ID) == "done")
    assert installed(second.cache)[0].complete


def test_pause_sign_in_the_row(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    hub.rate = SLOW
    stage.dialog.details.buttons["download"].click()
    index, box = stage.dialog.rows.index_of(ID), stage.dialog.list.visualRect(stage.dialog.rows.index_of(ID))
    option = QStyleOptionViewItem()
    option.rect = box

    def press(at: QPoint) -> bool:
        kind, left = QEvent.Type.MouseButtonRelease, Qt.MouseButton.LeftButton
        event = QMouseEvent(kind, QPointF(at), QPointF(at), left, left, Qt.KeyboardModifier.NoModifier)
        return stage.dialog.delegate.editorEvent(event, stage.dialog.rows, option, index)

    assert not press(box.topLeft())
    assert phase_of(stage, ID) in ("queued", "running")
    assert press(stage.dialog.delegate.sign_box(box).center())
    assert phase_of(stage, ID) == "paused"


def test_keyboard_alone(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    dialog = stage.dialog
    qtbot.waitUntil(lambda: dialog.isVisible())
    dialog.search.setFocus()
    QTest.keyClicks(dialog.search, ID)
    QTest.keyClick(dialog.search, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: dialog.details.shown == ID)
    assert dialog.isVisible(), "Return searches; it does not close the dialog"
    dialog.activateWindow()
    QTest.keyClick(dialog.search, Qt.Key.Key_Down)
    hub.rate = SLOW
    QTest.keyClick(dialog.list, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: phase_of(stage, ID) in ("queued", "running"))
    QTest.keyClick(dialog.list, Qt.Key.Key_Space)
    assert phase_of(stage, ID) == "paused"
    QTest.keyClick(dialog.list, Qt.Key.Key_Space)
    hub.rate = None
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "done")
    QTest.keyClick(dialog, Qt.Key.Key_Escape)
    assert not dialog.isVisible()


def test_tab_goes_on_from_the_list_to_the_model_and_its_buttons(stage: DialogStage, qtbot: QtBot) -> None:
    look_at(stage, qtbot, ID)
    dialog = stage.dialog
    dialog.activateWindow()
    qtbot.waitUntil(dialog.isActiveWindow)
    for box in dialog.details.findChildren(ChoiceBox):
        if box.isVisible():
            box.showPopup()  # its list, a window of its own, is no stop
            box.hidePopup()
    dialog.list.setFocus(Qt.FocusReason.TabFocusReason)
    names: list[str] = []
    while (focus := dialog.focusWidget()) is not dialog.search:
        assert focus is not None
        names.append(focus.accessibleName() or getattr(focus, "text", str)())
        QTest.keyClick(focus, Qt.Key.Key_Tab)
    assert names[:4] == ["Models", "About this model", "Weight format", "Context"]
    assert names[-3:] == ["Download", "Token…", "Add a model folder…"]
    assert "Text" in names[4:-3]


def test_gated_model_asks_for_a_token(stage: DialogStage, qtbot: QtBot) -> None:
    look_at(stage, qtbot, GATED)
    pane = stage.dialog.details
    assert "Accept the licence" in text_of(stage)
    assert pane.access.field.isVisibleTo(stage.dialog)
    pane.access.field.setText("hf_good")
    pane.access.use.click()
    assert pane.access.field.text() == ""
    qtbot.waitUntil(lambda: "Runs with CPU help" in text_of(stage))
    assert not pane.access.field.isVisibleTo(stage.dialog)
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: phase_of(stage, GATED) == "done")


def test_the_kept_token_can_be_seen_and_forgotten(stage: DialogStage, qtbot: QtBot) -> None:
    token = stage.dialog.token
    with qtbot.waitSignal(stage.catalog.token_known) as known:
        token.click()
    assert known.args == ["none"]
    token.token_given.emit("hf_good")
    with qtbot.waitSignal(stage.catalog.token_known) as known:
        token.click()
    assert known.args == ["keyring"]
    assert [action.text() for action in token.menu_for("environment").actions()][-1] == "Enter another…"
    forget = token.menu_for("keyring").actions()[-1]
    assert forget.text() == "Forget it"
    forget.trigger()
    with qtbot.waitSignal(stage.catalog.token_known) as known:
        token.click()
    assert known.args == ["none"]


def test_failure_is_said_where_the_work_was(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    gone = {"X-Error-Code": "EntryNotFound"}
    hub.faults = [Fault("00002", "status", code=404, headers=gone, times=9)]
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "failed")
    assert "A file of heron/heron-7b-instruct is not on" in text_of(stage)
    assert buttons_of(stage) == ["retry", "cancel"]
    hub.faults = []
    stage.dialog.details.buttons["retry"].click()
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "done")


def test_full_disk_is_a_pause_with_a_sentence(
    stage: DialogStage, qtbot: QtBot, hub: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    look_at(stage, qtbot, ID)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "paused")
    assert "does not fit on the disk" in text_of(stage)
    assert buttons_of(stage) == ["resume", "cancel"]
    monkeypatch.undo()
    stage.dialog.details.buttons["resume"].click()
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "done")


def test_search_that_fails_can_be_tried_again(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    hub.faults = [Fault("api/models", "status", code=400, times=9)]
    stage.dialog.search.setText("heron")
    qtbot.waitUntil(lambda: stage.dialog.again.isVisibleTo(stage.dialog))
    assert "It answered 400" in stage.dialog.note.text()
    hub.faults = []
    stage.dialog.again.click()
    qtbot.waitUntil(lambda: headings(stage) == [FOUND])
    assert not stage.dialog.again.isVisibleTo(stage.dialog)


@pytest.mark.parametrize("faults", [[], [Fault("api/models?", "status", code=400, times=9)]], ids=["found", "failed"])
def test_results_that_come_after_a_model_was_named_do_not_replace_it(
    stage: DialogStage, qtbot: QtBot, hub: Double, faults: list[Fault]
) -> None:
    hub.faults = faults
    outcome = stage.catalog.failed if faults else stage.catalog.found
    with qtbot.waitSignal(outcome):  # no event is processed before
        stage.dialog.search.setText("heron")
        QTest.keyClick(stage.dialog.search, Qt.Key.Key_Return)
        stage.dialog.search.setText("somebody/else")
        QTest.keyClick(stage.dialog.search, Qt.Key.Key_Return)
    assert ids(stage) == ["somebody/else"]
    assert stage.dialog.details.shown == "somebody/else"
    assert not stage.dialog.again.isVisibleTo(stage.dialog)


def test_nothing_found_is_said(stage: DialogStage, qtbot: QtBot) -> None:
    stage.dialog.search.setText("no such thing")
    qtbot.waitUntil(lambda: "Nothing was found" in stage.dialog.note.text())


def test_model_that_cannot_run_is_not_offered(stage: DialogStage, qtbot: QtBot) -> None:
    look_at(stage, qtbot, "heron/strange")
    assert "The architecture 'strange' is not known." in text_of(stage)
    assert buttons_of(stage) == []


def fetched(stage: DialogStage, qtbot: QtBot) -> None:
    look_at(stage, qtbot, ID)
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: "verify" in buttons_of(stage))


def test_check_and_repair(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    fetched(stage, qtbot)
    stage.dialog.details.buttons["verify"].click()
    qtbot.waitUntil(lambda: "All files are sound" in text_of(stage))
    (model,) = installed(stage.cache)
    blob = (model.path / "model-00001-of-00003.safetensors").resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    stage.dialog.details.buttons["verify"].click()
    qtbot.waitUntil(lambda: "1 files are damaged or missing: model-00001" in text_of(stage))
    hub.sent.clear()
    stage.dialog.details.buttons["repair"].click()
    qtbot.waitUntil(lambda: phase_of(stage, ID) == "done")
    assert set(hub.sent) == {"model-00001-of-00003.safetensors"}


def test_the_keyboard_stays_at_the_buttons(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    hub.rate = SLOW
    buttons = stage.dialog.details.buttons
    for pressed, follows in (("download", "pause"), ("pause", "resume"), ("resume", "pause")):
        buttons[pressed].setFocus()
        QTest.keyClick(buttons[pressed], Qt.Key.Key_Space)
        qtbot.waitUntil(lambda follows=follows: buttons[follows].isVisible())  # type: ignore[misc]
        assert stage.dialog.focusWidget() is buttons[follows]
    stage.downloads.pause(ID)


@pytest.mark.parametrize(("key", "stays"), [(Qt.Key.Key_Escape, True), (Qt.Key.Key_Return, True), (None, False)])
def test_deleting_is_asked_about_first(
    stage: DialogStage, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch, key: Qt.Key | None, stays: bool
) -> None:
    fetched(stage, qtbot)

    def answered(box: QMessageBox) -> int:
        box.show()
        if key is None:
            next(one for one in box.buttons() if box.buttonRole(one) == QMessageBox.ButtonRole.AcceptRole).click()
        else:
            QTest.keyClick(box, key)
        return 0

    monkeypatch.setattr(QMessageBox, "exec", answered)
    stage.dialog.details.buttons["remove"].click()
    if stays:
        assert [model.id for model in installed(stage.cache)] == [ID]
    else:
        qtbot.waitUntil(lambda: not installed(stage.cache))
    qtbot.waitUntil(lambda: stage.dialog.findChild(QMessageBox) is None)


def test_delete_says_what_is_freed(stage: DialogStage, qtbot: QtBot) -> None:
    fetched(stage, qtbot)
    row = stage.dialog.current()
    assert row is not None
    with qtbot.waitSignal(stage.catalog.removed) as removed:
        stage.dialog.removal.remove(row)
    assert removed.args[0] == ID
    assert removed.args[1] > 1_500_000
    assert "are free again" in stage.dialog.note.text()
    qtbot.waitUntil(lambda: buttons_of(stage) == ["download"])


def test_cancel_gives_a_download_up(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    hub.rate = SLOW
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: stage.cache.partials(ID) != {})
    row = stage.dialog.current()
    assert row is not None
    stage.dialog.removal.remove(row)
    qtbot.waitUntil(lambda: not stage.cache.repo(ID).exists())
    assert stage.downloads.unfinished() == []


def test_folder_is_used_in_place(stage: DialogStage, qtbot: QtBot, tmp_path: Path) -> None:
    fetched(stage, qtbot)
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(installed(stage.cache)[0].path, mine)
    stage.catalog.add_folder(mine)
    stage.dialog.search.setText("")
    qtbot.waitUntil(lambda: "mine" in ids(stage))
    row = stage.dialog.rows.row(stage.dialog.rows.index_of("mine"))
    assert possible(row) == {"use", "folder", "remove"}
    assert row is not None
    stage.dialog.removal.remove(row)
    qtbot.waitUntil(lambda: "mine" not in ids(stage))
    assert mine.is_dir()
    stage.catalog.add_folder(tmp_path)
    qtbot.waitUntil(lambda: "holds no whole model" in text_of(stage))


def test_closing_the_threads_pauses(stage: DialogStage, qtbot: QtBot, hub: Double) -> None:
    look_at(stage, qtbot, ID)
    hub.faults = [Fault(".safetensors", "stall", times=9, at=10, seconds=60, where="files")]
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: len(hub.paths("files")) > 3)
    stage.downloads.close()


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_verdicts_are_told_apart_without_colour(scheme: Any) -> None:
    looks = [(word, icon) for word, icon, _ in words.VERDICTS.values()]
    assert len({word for word, _ in looks}) == len({icon for _, icon in looks}) == 4
    for _, _, token in words.VERDICTS.values():
        for ground in ("window", "tint", "side"):
            assert contrast(getattr(scheme, token), getattr(scheme, ground)) >= 4.5


def test_cards_lose_html_and_images_but_not_code() -> None:
    card = (
        "<!-- hidden -->\n<div align='center'>\n<img src=\"https://x/y.png\">\n</div>\n# Title\n"
        "[![badge](https://x/b.svg)](https://x)\n\n\n\nText<br>more <b>bold</b> 3 < 4\n"
        "<script>steal()</script>\n```html\n<b>kept</b> ![kept](x)\n```\n"
    )
    plain = words.plain_card(card)
    for gone in ("hidden", "img", "https://", "steal", "<br>", "<div"):
        assert gone not in plain
    assert plain.startswith("# Title")
    assert "Text\nmore bold 3 < 4" in plain
    assert "<b>kept</b> ![kept](x)" in plain


def test_transfers_in_words() -> None:
    progress = Progress("a", "", "fetching", 3 * 10**9, 16 * 10**9, 0, 85e6, 153.0)
    cases = (
        (Transfer("a", "queued"), "Waiting for its turn"),
        (Transfer("a", "running"), "Asking what there is"),
        (Transfer("a", "running", progress), "3.0 GB of 16.0 GB · 85 MB/s · 2 min left"),
        (Transfer("a", "running", replace(progress, note="Wait.")), "3.0 GB of 16.0 GB · Wait."),
        (Transfer("a", "running", replace(progress, phase="checking")), "3.0 GB of 16.0 GB · checking what is here"),
        (Transfer("a", "paused", progress), "Paused at 3.0 GB of 16.0 GB"),
        (Transfer("a", "paused"), "Paused"),
        (Transfer("a", "paused", progress, DiskFull("The disk is full.", "x")), "Paused: The disk is full."),
        (Transfer("a", "failed", progress, DiskFull("The disk is full.", "x")), "The disk is full."),
    )
    for transfer, expected in cases:
        assert words.transfer(transfer) == expected


def test_numbers_that_are_not_known_say_so() -> None:
    assert words.facts(0, 0, "", gated=False) == "n/a · size n/a · licence n/a"
    assert words.facts(8_030_261_248, 16_060_522_496, "mit", gated=True) == "8.0 B · 16.1 GB · mit · gated"
    slow = check_fit({"parameters": 14_000_000_000}, {}, Wishes())
    assert (slow.kind, words.speed(slow)) == ("slow", "about 0.8–1.4 tokens/s")
    assert words.speed(check_fit({"parameters": 70_000_000_000}, {}, Wishes())) == ""
    assert kind_of(1) == "fits"
