"""The words of the window in other languages: one JSON file per language in `assets/translations`, English to other.

Every text that is passed through Qt's `tr` or `translate` is looked up; what a file does not have stays English. What
errors, plans and explanations say has files of its own beside them, in `sentences`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType

from PySide6.QtCore import QCoreApplication, QLocale, QTranslator

from core.errors import HeteGenError
from core.paths import assets
from core.sentence import Sentence

log = logging.getLogger(__name__)
SENTENCE = "sentence"
NUMBER = re.compile(r"\d{1,3}((,\d{3})*(\.\d+)? [kMGT]?B(/s)?|(,\d{3})+|\.\d)")
"""What fills a sentence's gap and is a size, a large count or a number of one decimal; versions have other forms."""


def tr(text: str) -> str:
    """The text in the user's language, for those who are no QObject."""
    return QCoreApplication.translate("", text)


def number(written: str) -> str:
    """Digits written as in English ("1,234.5 GB"), as the user's language writes them."""
    sample = tr("1,234.5")
    return written.translate({ord(","): sample[1], ord("."): sample[5]})


def said(sentence: str) -> str:
    """A sentence of the engine in the user's language: its template is looked up, its arguments are filled in."""
    if not isinstance(sentence, Sentence):
        if NUMBER.fullmatch(sentence):
            return number(sentence)
        return QCoreApplication.translate(SENTENCE, sentence)
    template = QCoreApplication.translate(SENTENCE, sentence.template)
    return template.format(*(said(arg) if isinstance(arg, str) else arg for arg in sentence.args))


def said_error(error: HeteGenError) -> str:
    """What happened, why, and the next step."""
    return " ".join(said(part) for part in (error.what, error.why, error.next_step) if part)


class Catalogue(QTranslator):
    """A translator over a table of texts, whatever the context, and one of templates for the context SENTENCE."""

    def __init__(self, words: Mapping[str, str], sentences: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__()
        self._words = words
        self._sentences = sentences

    def isEmpty(self) -> bool:
        return not self._words

    def translate(self, context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
        # None, and not "", is how Qt is told that there is no translation.
        table = self._sentences if context == SENTENCE else self._words
        return table.get(text)  # type: ignore[return-value]


def languages() -> tuple[str, ...]:
    """The codes of the languages there are files for, and English."""
    return ("en", *sorted(path.stem for path in (assets() / "translations").glob("*.json")))


def catalogue(language: str) -> Catalogue:
    """The words of a language; "system" is the system's own. Empty for English and for what is not there."""
    code = QLocale.system().name()[:2] if language == "system" else language
    path = assets() / "translations" / f"{code}.json"
    if code == "en" or code not in languages():
        return Catalogue({})
    try:
        sentences = path.parent / "sentences" / path.name
        return Catalogue(json.loads(path.read_text("utf-8")), json.loads(sentences.read_text("utf-8")))
    except (OSError, ValueError) as error:
        log.warning("The words of %s cannot be read: %s", code, error)
        return Catalogue({})


def install(language: str) -> Catalogue:
    """Let the application speak a language, before its widgets are made."""
    app = QCoreApplication.instance()
    assert app is not None
    for former in app.findChildren(Catalogue):
        QCoreApplication.removeTranslator(former)
        former.deleteLater()
    words = catalogue(language)
    # Qt's to delete: if Python's collector did it in the middle of a translation, it would wait for that for ever.
    words.setParent(app)
    QCoreApplication.installTranslator(words)
    return words
