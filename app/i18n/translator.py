"""Translations of the window: one JSON file per language in `assets/translations`, from English.

Every text passed through Qt's `tr` or `translate` is looked up; missing ones stay English. The sentences of errors,
plans and explanations have their own files in `sentences`.
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
NUMBER = re.compile(r"\d{1,3}((,\d{3})*(\.\d+)? [kMGT]?B(/s)?|(,\d{3})+|\.\d)|0\.\d+")
"""Arguments of a sentence that are sizes, large counts, numbers with one decimal or fractions; versions look
different."""


def tr(text: str) -> str:
    """Translate a text outside of QObjects."""
    return QCoreApplication.translate("", text)


def number(written: str) -> str:
    """Convert a number from English notation ("1,234.5 GB") to that of the user's language."""
    sample = tr("1,234.5")
    return written.translate({ord(","): sample[1], ord("."): sample[5]})


def locale() -> QLocale:
    """Return the conventions for dates: the system's if it speaks the window's language, else those of its country."""
    system, own = QLocale.system(), QLocale(tr("en"))
    return system if system.language() == own.language() else QLocale(own.language(), system.territory())


def said(sentence: str) -> str:
    """Translate an engine sentence: look up its template, then fill in its arguments."""
    if not isinstance(sentence, Sentence):
        if NUMBER.fullmatch(sentence):
            return number(sentence)
        return QCoreApplication.translate(SENTENCE, sentence)
    template = QCoreApplication.translate(SENTENCE, sentence.template)
    return template.format(*(said(arg) if isinstance(arg, str) else arg for arg in sentence.args))


def said_error(error: HeteGenError) -> str:
    """Compose an error's text: what happened, why, and the next step."""
    return " ".join(said(part) for part in (error.what, error.why, error.next_step) if part)


class Catalogue(QTranslator):
    """A translator with one table of texts for all contexts, and one of templates for the context SENTENCE."""

    def __init__(self, words: Mapping[str, str], sentences: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__()
        self._words = words
        self._sentences = sentences

    def isEmpty(self) -> bool:
        return not self._words

    def translate(self, context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
        # None, not "", tells Qt that there is no translation.
        table = self._sentences if context == SENTENCE else self._words
        return table.get(text)  # type: ignore[return-value]


def languages() -> tuple[str, ...]:
    """List the codes of the available languages, English first."""
    return ("en", *sorted(path.stem for path in (assets() / "translations").glob("*.json")))


def catalogue(language: str) -> Catalogue:
    """Load a language's catalogue; "system" means the system's language. Empty for English and unknown languages."""
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
    """Install the translator of a language; call it before creating widgets."""
    app = QCoreApplication.instance()
    assert app is not None
    for former in app.findChildren(Catalogue):
        QCoreApplication.removeTranslator(former)
        former.deleteLater()
    words = catalogue(language)
    # Owned by Qt: if Python's garbage collector deleted it during a translation, it would deadlock.
    words.setParent(app)
    QCoreApplication.installTranslator(words)
    return words
