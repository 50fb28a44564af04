from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QCoreApplication
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app.about.network_access import ACCESSES, HUB, NEVER
from app.catalog.recommended import recommended
from app.i18n.translator import Catalogue, catalogue, install, languages
from app.notices.notices import REPORTS, WORDS
from app.settings.settings import declared
from app.settings.theme import Theme
from app.views.chat.empty_chat import GUIDE_PROMPTS, PROMPTS
from app.views.chat.message import ENDS, ReplyMessage, UserMessage
from app.views.conversations.sidebar import Sidebar
from app.views.frame.notice_bar import PHASES as LOADING
from app.views.frame.shortcuts_page import ALWAYS
from app.views.frame.status_line import PHASES
from app.views.frame.window import ACTIONS
from app.views.models.access import SOURCES
from app.views.models.fit import MEANINGS
from app.views.monitor.live_view import MACHINE, SPEEDS
from app.views.monitor.what_if import FITS, FORMATS
from core.paths import assets
from tests.app.find import find

APP = Path(__file__).parents[3] / "app"


def said_by_code() -> Iterator[str]:
    """Yield the texts that the sources pass to tr."""
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(ast.Attribute(attr="tr") | ast.Name("tr"), [ast.Constant(str(text)), *_]):
                    yield text


def said_by_tables() -> Iterator[str]:
    for entry in declared().values():
        yield from (
            entry.section,
            entry.label,
            entry.help,
            entry.unit,
            entry.unset,
            entry.example,
            *(words for _, words in entry.choices),
        )
    yield from (words for _, words, *_ in ACTIONS)
    yield from (words for words, _ in ALWAYS)
    yield from (*PHASES.values(), *LOADING.values(), *ENDS.values())
    yield from (name for kind in (UserMessage, ReplyMessage) for _, _, name in kind.offered)
    yield from (text for pair in PROMPTS for text in pair)
    for access in ACCESSES:
        yield from (access.what, access.when, access.sent)
    for _, name, tip in SPEEDS + MACHINE:
        yield from (name, tip)
    yield from (*MEANINGS.values(), *SOURCES.values())
    yield from (text for words in WORDS.values() for text in (words.title, words.button))
    yield from (title for title, _ in REPORTS.values())
    yield from (about for about, _ in GUIDE_PROMPTS)
    yield from (HUB, NEVER, *(words for _, words in FORMATS), *FITS.values())


@pytest.mark.parametrize("language", [code for code in languages() if code != "en"])
def test_every_text_has_its_translation_with_the_same_gaps(language: str) -> None:
    words = json.loads((assets() / "translations" / f"{language}.json").read_text("utf-8"))
    said = {*said_by_code(), *said_by_tables()} - {""}
    assert said - set(words) == set(), "these texts are not translated"
    for text, translated in words.items():
        assert translated.strip(), text
        assert text.count("{}") == translated.count("{}"), text


def test_no_translation_is_of_a_text_that_is_gone() -> None:
    said = {entry.summary for entry in recommended(assets())}
    for path in (*APP.rglob("*.py"), *(APP.parent / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    for language in (code for code in languages() if code != "en"):
        assert set(json.loads((assets() / "translations" / f"{language}.json").read_text("utf-8"))) - said == set()


def test_german_is_there() -> None:
    assert "de" in languages()


def test_what_is_not_translated_stays_english(qtbot: QtBot) -> None:
    words = Catalogue({"Rename": "Umbenennen"})
    QCoreApplication.installTranslator(words)
    try:
        assert QCoreApplication.translate("Any", "Rename") == "Umbenennen"
        assert QCoreApplication.translate("Any", "Something else") == "Something else"
    finally:
        QCoreApplication.removeTranslator(words)


def test_widgets_speak_the_language_that_is_installed(qtbot: QtBot) -> None:
    words = install("de")
    try:
        sidebar = Sidebar(Theme("light"))
        qtbot.addWidget(sidebar)
        assert find(sidebar, QPushButton, "Neue Unterhaltung")
    finally:
        QCoreApplication.removeTranslator(words)


@pytest.mark.parametrize("language", ["en", "xx", "../../etc"])
def test_unknown_languages_are_english(language: str) -> None:
    assert catalogue(language).isEmpty()


def test_translators_are_not_pythons_to_delete(qtbot: QtBot) -> None:
    """If the garbage collector deleted one during a translation, it would deadlock."""
    app = QCoreApplication.instance()
    install("de")
    words = install("en")
    assert words.parent() is app
    assert QCoreApplication.translate("", "Settings") == "Settings"
