"""The update check against a real server on loopback, and the box that shows its outcome."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QPushButton
from pytestqt.qtbot import QtBot

from app import REPOSITORY, VERSION
from app.about.about import licences, read_texts, versions
from app.application import Application, StartOptions
from app.notices import updates
from app.notices.updates import RELEASES_PAGE, UpdateAnswer, Updates, parts
from app.settings.theme import Theme
from app.system.paths import places
from app.views.settings.about_dialog import AboutDialog, LicencesDialog
from core.paths import assets
from tests.app.scripted_engine import ScriptedEngine
from tests.loopback import Loopback

Serve = Callable[[int, str], list[BaseHTTPRequestHandler]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Replace GitHub by a server; return the requests that it got."""
    servers = ExitStack()

    def begin(status: int, body: str) -> list[BaseHTTPRequestHandler]:
        heard: list[BaseHTTPRequestHandler] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing on stderr."""

        monkeypatch.setattr(updates, "API", servers.enter_context(Loopback(Handler)).address)
        return heard

    with servers:
        yield begin


def release(version: str, page: str = "") -> str:
    return json.dumps({"tag_name": f"v{version}", "html_url": page or f"{RELEASES_PAGE}/tag/v{version}"})


def answer(qtbot: QtBot) -> UpdateAnswer:
    asking = Updates()
    with qtbot.waitSignal(asking.answered) as heard:
        asking.check()
    asking.close()
    found = heard.args[0]
    assert isinstance(found, UpdateAnswer)
    return found


def test_a_newer_version_is_found(qtbot: QtBot, serve: Serve) -> None:
    serve(200, release("99.1"))
    assert answer(qtbot) == UpdateAnswer("newer", "99.1", f"{RELEASES_PAGE}/tag/v99.1")


@pytest.mark.parametrize("version", [VERSION, f"{VERSION}.0", "0.0.1"])
def test_the_newest_version_is_known_as_such(qtbot: QtBot, serve: Serve, version: str) -> None:
    serve(200, release(version))
    assert answer(qtbot).kind == "newest"


def test_nothing_is_sent_but_the_question(qtbot: QtBot, serve: Serve) -> None:
    heard = serve(200, release("1.0"))
    answer(qtbot)
    (request,) = heard
    assert request.path == f"/repos/{'/'.join(REPOSITORY.split('/')[-2:])}/releases/latest"
    assert {name.lower() for name in request.headers} == {"host", "user-agent", "accept-encoding"}


def test_a_page_elsewhere_is_not_taken_over(qtbot: QtBot, serve: Serve) -> None:
    serve(200, release("99.1", "https://example.org/free-money"))
    assert answer(qtbot).page == RELEASES_PAGE


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, "{}", "No version has been released"),
        (403, "{}", "does not tell it now"),
        (500, "", "does not work at the moment"),
        (200, "<html>Sign in", "was not understood"),
        (200, "[]", "was not understood"),
        (200, '{"tag_name": null}', "was not understood"),
    ],
)
def test_what_could_not_be_found_out_says_why(qtbot: QtBot, serve: Serve, status: int, body: str, why: str) -> None:
    serve(status, body)
    found = answer(qtbot)
    assert found.kind == "unknown"
    assert why in str(found.error)


def test_without_a_network_it_says_so(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens
        monkeypatch.setattr(updates, "API", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "cannot be reached" in str(answer(qtbot).error)


def test_versions_are_compared_by_their_numbers() -> None:
    assert parts("1.10") > parts("1.9.9")
    assert parts("1.0") == parts("1")
    assert parts("0.1.1") > parts("0.1")


@pytest.mark.parametrize("wished", [True, False])
def test_it_is_asked_at_the_start_only_if_wished(qtbot: QtBot, serve: Serve, wished: bool) -> None:
    heard = serve(200, release("99.1"))
    places().settings.parent.mkdir(parents=True)
    places().settings.write_text(json.dumps({"update_check": wished}), "utf-8")
    app = Application(StartOptions("some/model"), ScriptedEngine)
    app.window.show()
    qtbot.waitUntil(lambda: app.session.state.phase == "ready")
    if wished:
        qtbot.waitUntil(lambda: any("99.1" in notice.sentence for notice in app.window.notices.notices))
    app.window.close()
    app.window.deleteLater()
    assert len(heard) == wished


@pytest.fixture
def about(qtbot: QtBot) -> Iterator[AboutDialog]:
    dialog = AboutDialog(Theme("light"))
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, on=False)
    qtbot.addWidget(dialog)
    dialog.show()
    qtbot.waitUntil(dialog.isVisible)
    yield dialog
    dialog.hide()


def test_the_box_asks_and_shows_the_answer(about: AboutDialog, qtbot: QtBot) -> None:
    asked: list[bool] = []
    links: list[str] = []
    about.update_wished.connect(lambda: asked.append(True))
    about.link.connect(links.append)
    QTest.keyClick(about.update_button, Qt.Key.Key_Space)
    assert asked
    assert not about.update_button.isEnabled()
    about.show_answer(UpdateAnswer("newer", "9.9", f"{RELEASES_PAGE}/tag/v9.9"))
    assert f"Version 9.9 is there; this is {VERSION}." in about.update_words.text()
    QTest.keyClick(about.show_button, Qt.Key.Key_Space)
    assert links == [f"{RELEASES_PAGE}/tag/v9.9"]
    about.show_answer(UpdateAnswer("newest", VERSION))
    assert not about.show_button.isVisible()


def test_every_button_is_reached_by_the_keyboard_and_has_a_name(about: AboutDialog, qtbot: QtBot) -> None:
    about.activateWindow()
    about.update_button.setFocus()
    seen = set()
    for _ in range(20):
        focus = QApplication.focusWidget()
        if focus is None:
            break
        seen.add(focus.property("text") or focus.accessibleName())
        QTest.keyClick(focus, Qt.Key.Key_Tab)
    assert {"Look for updates", "Licences…", "Project page…", "Open folder"} <= {str(text) for text in seen}


def test_buttons_are_reached_as_they_are_read(about: AboutDialog) -> None:
    stops, at = [about.update_button.text()], about.update_button.nextInFocusChain()
    while at is not None and at is not about.update_button:
        if isinstance(at, QPushButton) and at.isVisible():
            stops.append(at.text())
        at = at.nextInFocusChain()
    assert stops == ["Look for updates", "Open folder", "Licences…", "Project page…", "Close"]


def test_versions_name_what_a_report_needs() -> None:
    found = dict(versions())
    assert set(found) == {"Qt", "PySide6", "torch", "transformers", "Python"}
    assert all(number[0].isdigit() for number in found.values())


def test_every_licence_has_its_words(qtbot: QtBot) -> None:
    found = licences(assets() / "licences")
    names = [licence.name for licence in found]
    assert names[:2] == ["HeteGen", "Qt, PySide6"]
    assert {"torch", "transformers", "nvidia-ml-py"} <= set(names)
    assert "LESSER GENERAL PUBLIC LICENSE" in read_texts(found[1])
    assert all(licence.version for licence in found[1:])
    dialog = LicencesDialog(Theme("light"), found, None)  # type: ignore[arg-type]
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, on=False)
    qtbot.addWidget(dialog)
    assert "Apache License" in dialog.text.toPlainText()


def test_a_bundle_lists_its_own_libraries(tmp_path: Path) -> None:
    (tmp_path / "texts" / "lib").mkdir(parents=True)
    (tmp_path / "texts" / "lib" / "LICENSE").write_text("Do as you like.", "utf-8")
    index = "library\tversion\tlicence\ttexts\nlib\t2.0\tMIT\tlib/LICENSE\nother\t1\tBSD\t\n"
    (tmp_path / "texts" / "index.tsv").write_text(index, "utf-8")
    *_, lib, other = licences(tmp_path)
    assert (lib.name, lib.version, lib.kind, read_texts(lib)) == ("lib", "2.0", "MIT", "Do as you like.")
    assert other.texts == ()
