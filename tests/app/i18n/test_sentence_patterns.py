"""Sentences of errors, plans and explanations in other languages: every one of them, also those put together."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QCoreApplication
from pytestqt.qtbot import QtBot

from app.i18n.sentence_patterns import Sentences
from app.i18n.translator import catalogue, install, languages, said
from app.monitor.bottleneck import Situation, explain
from app.monitor.live_records import outlook
from app.monitor.telemetry import Sample
from app.notices import notices
from core.accelerators.base import out_of_memory
from core.paths import assets
from core.planning.planner import place
from core.spec import Budget
from core.units import GIB
from tests.core.machines import DESKTOP, model

ROOT = Path(__file__).parents[3]
RECORDS = {"Report", "Explanation", "Replanned", "Shrink", "Grow", "Problem"}
"""What carries sentences besides errors."""
WHOLE = ("core/planning/explain.py", "app/monitor/bottleneck.py")
"""Modules that consist of sentences: every text in them counts."""
COMMAND_LINE = ("core/commands", "core/hardware/doctor", "core/weights/known_shapes")
"""Said on the command line only, in English."""
OTHERS = [code for code in languages() if code != "en"]
Names = dict[str, list[ast.expr]]


def all_sentences() -> Iterator[str]:
    """The sentences in the sources, with {} for what is filled in."""
    sources = (*sorted(ROOT.glob("core/**/*.py")), *sorted(ROOT.glob("app/**/*.py")))
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sources}
    carriers = {*RECORDS, "HeteGenError"}
    for find in (kinds, kinds, makers):  # kinds of kinds, then what makes them
        carriers |= {name for tree in trees.values() for name in find(tree, carriers)}
    for module, tree in trees.items():
        if not module.startswith(COMMAND_LINE):
            yield from sentences_of(tree, carriers, whole=module in WHOLE)


def kinds(tree: ast.Module, carriers: set[str]) -> Iterator[str]:
    """Errors that are special cases of known ones."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name, bases=bases):
                if any(isinstance(base, ast.Name | ast.Attribute) and last(base) in carriers for base in bases):
                    yield name


def last(name: ast.Name | ast.Attribute) -> str:
    return name.id if isinstance(name, ast.Name) else name.attr


def makers(tree: ast.Module, carriers: set[str]) -> Iterator[str]:
    """Functions that make an error of what they are given: `_refusal(name, why)`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name, returns=ast.Name(kind)) if kind in carriers:
                yield name


def subclasses(kind: type) -> Iterator[type]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


def sentences_of(tree: ast.Module, carriers: set[str], *, whole: bool) -> Iterator[str]:
    constants = assigned(tree.body)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        names = constants | assigned(list(ast.walk(function)))
        for node in ast.walk(function):
            match node:
                case ast.Call(ast.Name(name), arguments, keywords) if name in carriers:
                    for argument in [*arguments, *(keyword.value for keyword in keywords)]:
                        yield from texts(argument, names)
                case ast.Return(ast.expr() as value) if whole:
                    yield from texts(value, names)
    for node in tree.body:
        match node:
            case ast.Assign(_, ast.Call(ast.Name(name), arguments)) if name in carriers:
                for argument in arguments:
                    yield from texts(argument, constants)


def assigned(nodes: list[ast.stmt] | list[ast.AST]) -> Names:
    """The values that each name may have."""
    found: Names = {}
    for node in nodes:
        match node:
            case ast.Assign([ast.Name(name)], value):
                found.setdefault(name, []).append(value)
    return found


def texts(node: ast.expr, names: Names) -> Iterator[str]:
    """The texts that an expression may be, and those that are filled in where the sentence has a gap."""
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr(parts):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)  # type: ignore[misc]
            for part in parts:
                if isinstance(part, ast.FormattedValue):
                    yield from texts(part.value, names)
        case ast.IfExp(_, body, orelse):
            yield from (*texts(body, names), *texts(orelse, names))
        case ast.Dict(_, values):
            yield from (text for value in values for text in texts(value, names))
        case ast.Subscript(ast.Name(name)) | ast.Name(name) if name in names:
            rest = {other: values for other, values in names.items() if other != name}
            yield from (text for value in names[name] for text in texts(value, rest))


def is_sentence(text: str) -> bool:
    return " " in text.strip() and bool(re.search(r"[a-z]{3}", text))


def table(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(
        (assets() / "translations" / "sentences" / f"{language}.json").read_text("utf-8")
    )
    return found


@pytest.mark.parametrize("language", OTHERS)
def test_every_sentence_is_translated(language: str) -> None:
    there = Sentences(table(language))
    said_here = {text for text in all_sentences() if is_sentence(text)}
    assert len(said_here) > 200, "the sources are read"
    assert {text for text in said_here if there.translate(text.replace("{}", "X1")) is None} == set()


@pytest.mark.parametrize("language", OTHERS)
def test_translations_have_the_same_gaps(language: str) -> None:
    for text, translated in table(language).items():
        assert translated.strip(), text
        assert text.count("{}") == translated.count("{}"), text


@pytest.fixture
def german(qtbot: QtBot) -> Iterator[None]:
    words = install("de")
    yield
    QCoreApplication.removeTranslator(words)


def test_what_fills_a_gap_is_translated_too() -> None:
    words = Sentences({"{} is {}.": "{} ist {}.", "it": "es", "only partly there": "nur zum Teil da"})
    assert words.translate("it is only partly there.") == "es ist nur zum Teil da."
    assert words.translate("model-1 is only partly there.") == "model-1 ist nur zum Teil da."
    assert words.translate("Something else") is None


def test_the_longest_pattern_wins() -> None:
    words = Sentences({"{} cannot be {}.": "{} {}?", "{} cannot be read.": "{}: unlesbar."})
    assert words.translate("a cannot be read.") == "a: unlesbar."


def test_errors_and_plans_are_german_in_a_german_window(german: None) -> None:
    notice = notices.for_error(out_of_memory("cuda:0", 2 * 10**9, 10**9))
    assert notice.sentence.startswith("Die Grafikkarte hat zu wenig freien Speicher.")
    assert not re.search(r"\b(the|were|are|other)\b", notice.sentence)
    spec = model("llama-3.1-8b")
    busy = replace(DESKTOP, gpus=(), cpu=replace(DESKTOP.cpu, ram_free=6 * GIB))
    for hardware in (DESKTOP, replace(DESKTOP, gpus=()), busy):
        for format in ("auto", "bf16", "int4"):
            plan = place(spec, hardware, Budget(context=8192, format=format))  # type: ignore[arg-type]
            for sentence in (plan.reason, *plan.reasons):
                assert not re.search(r"\b(the|of|is|and|are|would)\b", said(sentence)), sentence
            why = explain(Situation(Sample(0.0), outlook(plan, spec, hardware), 1.0))
            assert said(why.sentence) != why.sentence
            assert said(why.help) != why.help


def test_without_a_translation_the_sentence_stays(qtbot: QtBot) -> None:
    install("en")
    assert said("The disk is full.") == "The disk is full."
    assert catalogue("de").translate("sentence", "Unheard of.") is None
