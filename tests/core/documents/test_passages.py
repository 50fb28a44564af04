"""Passages of long documents: split without loss, found by words in any script, others at the next question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.documents.document import Document
from core.documents.passages import LONGEST, PassageIndex, Span, joined, query_of, spans

FILLER = "The committee met on a rainy day and spoke about many things at length. "


def found(pages: list[str], question: str, budget: int = 700) -> list[int]:
    """Return the pages (from 0) of the passages for a question, with about `budget` characters in total."""
    index = PassageIndex(Document("d", tuple(pages)))
    return [span.page for span in index.find(question, budget, len)]


@given(st.lists(st.text(max_size=3 * LONGEST), max_size=4))
def test_passages_are_the_pages_cut_to_pieces(pages: list[str]) -> None:
    kept: list[list[str]] = [[] for _ in pages]
    for page, start, end in spans(Document("d", tuple(pages))):
        assert 0 < end - start <= LONGEST
        kept[page].append(pages[page][start:end])
    for page, pieces in zip(pages, kept, strict=True):
        assert "".join("".join(pieces).split()) == "".join(page.split())


def test_a_passage_ends_at_a_paragraph_or_a_sentence() -> None:
    text = ("A sentence of some words. " * 30).strip() + "\n\n" + "Another paragraph. " * 40
    pieces = [text[start:end] for _, start, end in spans(Document("d", (text,)))]
    assert pieces[0].endswith("words.\n\n")
    assert all(piece.rstrip().endswith(".") for piece in pieces)


@pytest.mark.parametrize(
    ("fact", "question"),
    [
        ("The boiling point of xenon is 165 kelvin.", "At what temperature does xenon boil?"),
        ("Die Messungen in Größenwahn ergaben 17 Volt.", "Was ergab die Messung in Groessenwahn oder Größenwahn?"),
        ("Der Zählerstand beträgt 4711.", "welche Zählerstände gab es?"),
        ("李明的办公室在三楼。", "李明的办公室在哪里？"),
        ("東京支社の売上は五億円だった。", "東京支社の売上は？"),
        ("서울 지사의 매출은 오억 원이다.", "서울지사 매출은 얼마입니까?"),
        ("Цена билета составляет 40 рублей.", "Какова цена билета?"),
        ("error E-4021: the pump is dry", "What does E-4021 mean?"),
    ],
)
def test_the_page_that_answers_is_found(fact: str, question: str) -> None:
    pages = [FILLER * 8 for _ in range(30)]
    pages[17] += fact
    assert found(pages, question) == [17]


def test_words_of_every_question_are_not_looked_for() -> None:
    assert query_of("What is the … of it?") == ""
    assert query_of("Wie ist das?") == ""
    assert query_of("What is the price?") == '"price" OR "pric"*'


@pytest.mark.parametrize("question", ['"', "a* OR (b", "NEAR(x y)", "words: -x", "'; DROP TABLE passages", "\0", ""])
def test_signs_of_the_query_language_are_only_words(question: str) -> None:
    assert found(["one page"], question) == [0]


def test_a_very_long_question_is_one_too() -> None:
    assert found(["needle"], "needle " + " ".join(f"word{n}" for n in range(5000))) == [0]


def test_a_question_about_the_whole_gets_places_throughout() -> None:
    pages = found([f"page {n} " + FILLER for n in range(64)], "Summarize this, please", budget=8 * (len(FILLER) + 8))
    assert pages[0] == 0
    assert len(pages) >= 7
    assert max(b - a for a, b in zip(pages, [*pages[1:], 64], strict=True)) <= 16


def test_what_was_seen_is_not_found_again_unless_it_fits_best() -> None:
    index = PassageIndex(Document("d", tuple(f"The pump of hall {n}. " + FILLER * 5 for n in range(6))))
    first = index.find("pumps", 900, len)
    second = index.find("pumps", 900, len, seen=first)
    assert first
    assert len(set(second) - set(first)) >= len(second) - 1 > 0


def test_no_more_is_taken_than_is_wanted() -> None:
    index = PassageIndex(Document("d", tuple("pump " * 150 for _ in range(20))))
    chosen = index.find("pump", 2000, len)
    assert 0 < sum(len(index.text(span)) for span in chosen) <= 2000


def test_neighbours_are_joined_and_others_are_not() -> None:
    assert joined([Span(1, 5, 9), Span(0, 0, 3), Span(1, 9, 12), Span(1, 20, 30)]) == [
        Span(0, 0, 3), Span(1, 5, 12), Span(1, 20, 30),
    ]  # fmt: skip
