"""Sentences of errors, plans and explanations in other languages: all are found in the sources, and translated."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
from collections.abc import Iterator, Set
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from PySide6.QtCore import QCoreApplication
from PySide6.QtWidgets import QLineEdit
from pytestqt.qtbot import QtBot

from app.i18n import formatting
from app.i18n.translator import catalogue, install, languages, said
from app.monitor.bottleneck import Situation, explain
from app.monitor.live_records import outlook
from app.monitor.telemetry import Sample
from app.notices import notices
from app.settings.settings import Settings, declared
from app.settings.theme import Theme
from app.views.models import words
from app.views.settings.setting_fields import SettingField
from core.accelerators.base import out_of_memory
from core.paths import assets
from core.planning.explain import tok_s
from core.planning.planner import place
from core.runtime.fit import fit
from core.sentence import joined, pack, sentence, unpack
from core.spec import Budget, Prediction
from core.units import GIB
from tests.core.machines import DESKTOP, model

ROOT = Path(__file__).parents[3]
RECORDS = {"Report", "Explanation", "Replanned", "Shrink", "Grow", "Problem"}
"""Records that carry sentences, besides errors."""
WHOLE = ("core/planning/explain.py", "app/monitor/bottleneck.py", "core/hardware/untried.py")
"""Modules that consist of sentences: every text in them counts."""
COMMAND_LINE = ("core/commands", "core/hardware/doctor", "core/weights/known_shapes")
"""Printed on the command line only, in English."""
OTHERS = [code for code in languages() if code != "en"]


@cache
def trees() -> dict[str, ast.Module]:
    """Parse each source once."""
    sources = (*sorted(ROOT.glob("core/**/*.py")), *sorted(ROOT.glob("app/**/*.py")))
    found = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sources}
    return {name: tree for name, tree in found.items() if not name.startswith(COMMAND_LINE)}


@cache
def carriers() -> frozenset[str]:
    """Return the names of the errors and records that carry sentences, and of functions that create them."""
    found = {*RECORDS, "HeteGenError"}
    for _ in range(3):  # subclasses of subclasses, then the functions that create them
        for node in (node for tree in trees().values() for node in ast.walk(tree)):
            match node:
                case ast.ClassDef(name=name, bases=bases) if found & {ast.unparse(base) for base in bases}:
                    found.add(name)
                case ast.FunctionDef(name=name, returns=ast.Name(kind)) if kind in found:
                    found.add(name)
    return frozenset(found)


def arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def calls(names: Set[str]) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of functions and classes with these names, with their places."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{module}:{node.lineno}", node


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the literal sentences in an expression; not those inside of an f-string."""
    match node:
        case ast.Constant(str(text)) if is_sentence(text):
            yield text
        case ast.JoinedStr() | ast.Expr(ast.Constant()):
            return
        case _:
            for child in ast.iter_child_nodes(node):
                yield from texts(child)


def is_sentence(text: str) -> bool:
    return " " in text.strip() and bool(re.search(r"[a-z]{3}", text))


def all_sentences() -> set[str]:
    names = {*carriers(), "sentence"}
    found = {text for _, call in calls(names) for argument in arguments(call) for text in texts(argument)}
    return found | {text for module, tree in trees().items() if module in WHOLE for text in texts(tree)}


def table(language: str) -> dict[str, str]:
    file = assets() / "translations" / "sentences" / f"{language}.json"
    found: dict[str, str] = json.loads(file.read_text("utf-8"))
    return found


@pytest.mark.parametrize("language", OTHERS)
def test_every_sentence_is_translated(language: str) -> None:
    found = all_sentences()
    assert len(found) > 200, "the sources are read"
    assert found - table(language).keys() == set()


def test_what_has_gaps_is_made_by_sentence() -> None:
    """An f-string would have lost its template, and so its translation."""
    lost = [
        place
        for place, call in calls(carriers())
        for argument in arguments(call)
        if isinstance(argument, ast.JoinedStr)
        and is_sentence("".join(part.value for part in argument.values if isinstance(part, ast.Constant)))  # type: ignore[misc]
    ]
    assert not lost, 'use core.sentence.sentence("... {} ...", value) instead of an f-string'


def test_the_systems_own_words_are_never_all_that_is_said() -> None:
    """The system's own words are not translated, so they follow a sentence of ours that says what happened."""
    kinds = {name for name in carriers() if name[0].isupper()}
    alone = [place for place, call in calls(kinds) if call.args and "strerror" in ast.unparse(call.args[0])]
    assert not alone


def test_percentages_have_one_form() -> None:
    """As `format_share` writes them, in sentences, legends and on the command line."""
    specs = (
        (module, node.format_spec)
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None
    )
    assert not [module for module, spec in specs if ast.unparse(spec).rstrip("'\"").endswith("%")]


def test_templates_are_literals() -> None:
    assert not [place for place, call in calls({"sentence"}) if not isinstance(call.args[0], ast.Constant)]


@pytest.mark.parametrize("language", OTHERS)
def test_translations_have_the_same_gaps(language: str) -> None:
    for text, translated in table(language).items():
        assert translated.strip(), text
        assert text.count("{}") == translated.count("{}"), text


@pytest.mark.parametrize("language", OTHERS)
def test_labels_of_settings_are_translated_inside_of_sentences(language: str) -> None:
    assert {entry.label for entry in declared().values()} - table(language).keys() == set()


@pytest.fixture
def german(qtbot: QtBot) -> Iterator[None]:
    words = install("de")
    yield
    QCoreApplication.removeTranslator(words)


def test_what_is_not_known_is_said_in_the_windows_language(german: None) -> None:
    assert formatting.unknown() == "k. A."
    assert formatting.percent(None) == formatting.rate(None) == "k. A."


def test_a_sentence_is_its_text() -> None:
    found = sentence("{} of {} weight files are missing.", 1, "3")
    assert found == "1 of 3 weight files are missing."
    assert sentence("Use {{}} for {}.", "gaps") == "Use {} for gaps."


def test_what_fills_a_gap_is_translated_too(german: None) -> None:
    inner = sentence(
        "{} of its {} must be read from the disk for every token: about {} tokens per second.", "1", "2", 3
    )
    found = said(sentence("{} It is too big for this computer.", inner))
    assert not re.search(r"\b(the|of|is|must|for)\b", found)
    assert said(joined("; ", ["4-bit weights", "8-bit weights"])) == f"{said('4-bit weights')}; {said('8-bit weights')}"


@pytest.mark.parametrize(
    ("english", "written"),
    [("2,048", "2.048"), ("1.5 GB", "1,5 GB"), ("12,345.6 MB/s", "12.345,6 MB/s"), ("3.4", "3,4"),
     ("550.54.14", "550.54.14"), ("551.23", "551.23"), ("127.0.0.1", "127.0.0.1"), ("Qwen2.5", "Qwen2.5")],
)  # fmt: skip
def test_numbers_are_the_languages_own_and_versions_are_no_numbers(german: None, english: str, written: str) -> None:
    found = sentence("{} It is too big for this computer.", english)
    assert said(found).startswith(f"{written} ")
    assert str(found).startswith(f"{english} ")


def test_figures_of_the_window_are_german_too(german: None) -> None:
    assert formatting.of(1204, 8192) == "1.204 von 8.192"
    ranges = [Prediction(455.2, 910.0, 1364.4), Prediction(9.0, 11.0, 13.0), Prediction(20.1, 20.2, 20.3)]
    assert list(map(formatting.expected, ranges)) == ["460–1.400", "9,0–13", "20"], "no more digits than are known"
    assert formatting.receipt({"tok_s": 1234.0, "ttft_s": 0.62}) == "1.234 Tokens/s, 0,62 s bis zum ersten Token"
    assert formatting.format_memory(3 * GIB // 2) == "1,5 GB"


def test_a_sentence_outlives_copies_pickles_and_json(german: None) -> None:
    found = sentence(
        "{} It is too big for this computer.", sentence("The model needs {} in this format, and {}.", 1, "x")
    )
    for other in (
        copy.deepcopy(found),
        pickle.loads(pickle.dumps(found)),
        unpack(json.loads(json.dumps(pack(found)))),
    ):
        assert other == found
        assert said(other) == said(found) != found


def test_what_was_kept_as_plain_text_stays() -> None:
    assert unpack(pack("Kept by an older version.")) == "Kept by an older version."
    assert unpack(7) == "7"
    assert unpack(["{} and {}", "one"]) == "{} and {}"


def test_errors_and_plans_are_german_in_a_german_window(german: None) -> None:
    notice = notices.for_error(out_of_memory("cuda:0", 2 * 10**9, 10**9))
    assert notice.sentence.startswith("Die Grafikkarte hat zu wenig freien Speicher.")
    assert not re.search(r"\b(the|were|are|other)\b", notice.sentence)
    spec = model("llama-3.1-8b")
    busy = replace(DESKTOP, gpus=(), cpu=replace(DESKTOP.cpu, ram_free=6 * GIB))
    for hardware in (DESKTOP, replace(DESKTOP, gpus=()), busy):
        for format in ("auto", "bf16", "int4"):
            plan = place(spec, hardware, Budget(context=8192, format=format))  # type: ignore[arg-type]
            for reason in (plan.reason, *plan.reasons):
                assert not re.search(r"\b(the|of|is|and|are|would)\b", said(reason)), reason
            why = explain(Situation(Sample(0.0), outlook(plan, spec, hardware), 1.0))
            assert said(why.sentence) != why.sentence
            assert said(why.help) != why.help


def test_numbers_have_the_languages_separators(german: None) -> None:
    """In sentences, speeds, and fields for fractions; versions stay."""
    assert "0,05" in said(sentence("about {} tokens per second", tok_s(0.05)))
    assert "12,5" in said(sentence("about {} tokens per second", "12.5"))
    assert "2.11.0" in said(sentence("PyTorch {} finds no card that it can use.", "2.11.0"))
    plan = place(model("llama-3.1-8b"), replace(DESKTOP, gpus=()), Budget(context=8192))
    slow = replace(fit(plan, model("llama-3.1-8b"), 0), tok_s=Prediction(3.25, 4.5, 9.5))
    assert "3,2–9,5" in words.speed(slow)
    field = SettingField(Theme("light"), "temperature", Settings(temperature=0.7))
    assert field.findChild(QLineEdit).text() == "0,7"


def test_without_a_translation_the_sentence_stays(qtbot: QtBot) -> None:
    install("en")
    assert said("The disk is full.") == "The disk is full."
    assert catalogue("de").translate("sentence", "Unheard of.") is None
