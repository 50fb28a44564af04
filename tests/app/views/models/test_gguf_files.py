"""Repositories of GGUF files in the model dialog: a file is chosen by its verdict, downloaded, used and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

from app.views.models import words
from core.hub.installed import installed
from core.units import format_bytes
from tests.app.dialog_fixture import DialogStage
from tests.core.hub.fake_hub import Double, Repo, model_files
from tests.core.weights.gguf.tiny_gguf import make_model, write_gguf

ID = "heron/heron-GGUF"
SMALL, GOOD, LARGE = "heron-Q4_0.gguf", "heron-Q8_0.gguf", "heron-F32.gguf"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, model = tmp_path_factory.mktemp("gguf"), make_model("llama")
    kinds = {SMALL: gguf.GGMLQuantizationType.Q4_0, GOOD: gguf.GGMLQuantizationType.Q8_0, LARGE: None}
    found = {name: write_gguf("llama", model, folder / name, kind).read_bytes() for name, kind in kinds.items()}
    return found | {"README.md": b"# Heron in GGUF"}


@pytest.fixture
def hub(contents: dict[str, bytes]) -> Iterator[Double]:
    with Double(Repo(ID, contents, tags=("gguf",), parameters={}), Repo("heron/plain", model_files())) as running:
        yield running


@pytest.fixture
def make(qtbot: QtBot, tmp_path: Path, hub: Double) -> Iterator[Callable[[], DialogStage]]:
    stages: list[DialogStage] = []

    def build() -> DialogStage:
        stages.append(DialogStage(hub, tmp_path))
        stages[-1].dialog.show()
        return stages[-1]

    yield build
    for stage in stages:
        stage.close()


def look_at(stage: DialogStage, qtbot: QtBot, text: str) -> None:
    """Search, select the repository, and wait until every file is judged."""
    dialog = stage.dialog
    dialog.search.setText(text)
    qtbot.waitUntil(lambda: dialog.rows.index_of(ID).isValid())
    dialog.list.setCurrentIndex(dialog.rows.index_of(ID))
    qtbot.waitUntil(lambda: (one := dialog.details.details) is not None and not one.asking)


def phase_of(stage: DialogStage, name: str) -> str:
    state = stage.downloads.transfer(f"{ID}:{name}")
    return state.phase if state else ""


def text_of(stage: DialogStage) -> str:
    """Return all visible text of the details."""
    labels = stage.dialog.details.findChildren(QLabel)
    return "\n".join(label.text() for label in labels if label.isVisibleTo(stage.dialog))


def known_card(stage: DialogStage) -> str:
    details = stage.dialog.details.details
    return details.card if details else ""


def pick(stage: DialogStage, kind: str) -> None:
    box = stage.dialog.details.files
    at = next(at for at in range(box.count()) if box.itemText(at).startswith(kind))
    box.setCurrentIndex(at)
    box.activated.emit(at)


def test_the_best_file_is_chosen_and_the_others_have_their_verdict(
    make: Callable[[], DialogStage], qtbot: QtBot, contents: dict[str, bytes]
) -> None:
    stage = make()
    look_at(stage, qtbot, "heron")
    details = stage.dialog.details
    texts = [details.files.itemText(at).split(" · ") for at in range(3)]
    assert [(one[0], one[-2]) for one in texts[:2]] == [("Q4_0", "Fits"), ("Q8_0", "Runs with CPU help")]
    assert (texts[2][0], texts[2][-1]) == ("F32", "Will not fit")
    assert details.files.currentText().startswith("Q8_0")
    assert "recommended" in details.files.currentText()
    assert format_bytes(len(contents[GOOD])) in text_of(stage)
    row = stage.dialog.current()
    assert row is not None
    assert row.fit is not None
    assert row.fit.kind == "cpu_help", "the row says what the chosen file would do"
    pick(stage, "F32")
    assert "Will not fit" in text_of(stage)


def test_the_chosen_file_is_downloaded_used_and_removed(
    make: Callable[[], DialogStage], qtbot: QtBot, hub: Double, contents: dict[str, bytes]
) -> None:
    stage = make()
    look_at(stage, qtbot, "heron")
    pick(stage, "Q4_0")
    stage.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: phase_of(stage, SMALL) == "done")
    assert hub.bytes_sent(SMALL) >= len(contents[SMALL])
    (model,) = installed(stage.cache)
    qtbot.waitUntil(lambda: (row := stage.dialog.current()) is not None and row.is_whole)
    with qtbot.waitSignal(stage.dialog.chosen) as chosen:
        stage.dialog.details.buttons["use"].click()
    assert chosen.args == [str(model.path)]
    stage.dialog.show()
    stage.dialog.search.clear()
    qtbot.waitUntil(lambda: stage.dialog.rows.index_of(model.id).isValid())
    stage.dialog.list.setCurrentIndex(stage.dialog.rows.index_of(model.id))
    qtbot.waitUntil(lambda: (known := stage.dialog.details.details) is not None and not known.asking)
    assert known_card(stage) == "# Heron in GGUF"
    assert "heron-Q4_0" in text_of(stage).split("\n")
    row = stage.dialog.current()
    assert row is not None
    stage.dialog.removal.remove(row)
    qtbot.waitUntil(lambda: not installed(stage.cache))


def test_what_is_begun_is_chosen_again(
    make: Callable[[], DialogStage], qtbot: QtBot, hub: Double, contents: dict[str, bytes]
) -> None:
    first = make()
    look_at(first, qtbot, "heron")
    pick(first, "F32")
    hub.rate = 2e4  # not done before the window knows of its beginning
    first.dialog.details.buttons["download"].click()
    qtbot.waitUntil(lambda: phase_of(first, LARGE) == "running" and bool(installed(first.cache)))
    first.downloads.close()
    hub.rate = None
    second = make()
    look_at(second, qtbot, "heron")
    assert second.dialog.details.files.currentText().startswith("F32")
    second.dialog.details.buttons["resume"].click()
    qtbot.waitUntil(lambda: phase_of(second, LARGE) == "done")


def test_a_file_that_was_named_is_chosen(make: Callable[[], DialogStage], qtbot: QtBot) -> None:
    stage = make()
    look_at(stage, qtbot, f"{ID}:q4_0")
    assert stage.dialog.details.files.currentText().startswith("Q4_0")


def test_other_models_have_no_choice_of_files(make: Callable[[], DialogStage], qtbot: QtBot) -> None:
    stage = make()
    look_at(stage, qtbot, "heron")
    assert stage.dialog.details.files.isVisible()
    stage.dialog.list.setCurrentIndex(stage.dialog.rows.index_of("heron/plain"))
    qtbot.waitUntil(lambda: stage.dialog.details.shown == "heron/plain")
    assert not stage.dialog.details.files.isVisible()


def test_names_of_files() -> None:
    assert words.owner_and_name("a/b-GGUF:sub/b-Q4_0.gguf") == ("a/b-GGUF", "b-Q4_0")
    assert words.owner_and_name("a/b") == ("a", "b")
