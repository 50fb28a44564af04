import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.markdown_stream import LONGEST_LINE, LONGEST_RUN, CodeEnd, CodeStart, CodeText, Part, Prose, Splitter


def split(text: str, sizes: list[int] | None = None) -> list[Part]:
    splitter, parts, at = Splitter(), [], 0
    for size in sizes or [len(text) or 1]:
        parts += splitter.push(text[at : at + size])
        at += size
    parts += splitter.push(text[at:])
    return [*parts, *splitter.finish()]


def code_of(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, CodeText))


def test_paragraphs_headings_and_fences_come_apart() -> None:
    assert split("# Title\ntext\nmore\n\n```py\nx = 1\n```\nend") == [
        Prose("# Title"),
        Prose("text\nmore"),
        CodeStart("py"),
        CodeText("x = 1\n"),
        CodeEnd(),
        Prose("end"),
    ]


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("Sum:\n$$\nx = a\n+ b\n\n- c\n$$\nmore\n\nnext", ["Sum:\n$$ x = a + b - c $$\nmore", "next"]),
        ("\\[\n# a\n\\]\nafter", ["\\[ # a \\]\nafter"]),
        ("1. so \\[\n   x\n   - y\n   \\]\n2. two", ["1. so \\[ x - y \\]", "2. two"]),
        ("\\begin{align*}\na\n\n+ b\n\\end{align*}\nend", ["\\begin{align*} a + b \\end{align*}\nend"]),
        ("$$ \\frac12\n+ 3 $$\n- item", ["$$ \\frac12 + 3 $$", "- item"]),
        ("$$x$$\n- item", ["$$x$$", "- item"]),
        ("$$ is money\n- and\n\nnext", ["$$ is money", "- and", "next"]),
        ("Escape `\\[` so\n\nnext", ["Escape `\\[` so", "next"]),
        ("$$\nnever closed\n```\n```", ["$$ never closed"]),
    ],
)
def test_the_lines_of_a_formula_are_joined(text: str, runs: list[str]) -> None:
    for size in (1, 2, 5, len(text)):
        parts = split(text, [size] * (len(text) // size))
        assert [part.text for part in parts if isinstance(part, Prose)] == runs


def test_a_formula_without_end_is_cut() -> None:
    parts = split("$$\n" + "+ b\n" * 5000)
    assert max(len(part.text) for part in parts if isinstance(part, Prose)) < LONGEST_RUN + 10


def test_an_open_formula_is_shown_joined() -> None:
    splitter = Splitter()
    assert not list(splitter.push("$$\nx\n+ y"))
    assert splitter.tail == Prose("$$ x + y")


def test_an_unclosed_fence_ends_with_the_text() -> None:
    assert split("```js\nlet a") == [CodeStart("js"), CodeText("let a\n"), CodeEnd()]


def test_a_shorter_fence_does_not_close_a_longer_one() -> None:
    parts = split("````md\n```py\nx\n```\n````\n")
    assert code_of(parts) == "```py\nx\n```\n"


def test_list_items_know_how_deep_they_stand() -> None:
    levels = [
        part.level for part in split("1. a\n   - b\n     - c\n2. d\n\n   more of d\n\nafter") if isinstance(part, Prose)
    ]
    assert levels == [0, 1, 2, 0, 1, 0]


def test_code_in_a_list_item_loses_the_items_indent() -> None:
    parts = split("1. Run:\n   ```sh\n   ls\n     -l\n   ```\n2. Done")
    assert CodeStart("sh", 1) in parts
    assert code_of(parts) == "ls\n  -l\n"


def test_a_year_in_mid_paragraph_is_no_list() -> None:
    assert split("It was in\n1984. Then") == [Prose("It was in\n1984. Then")]


def test_a_table_stays_one_run() -> None:
    table = "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 100
    assert split(table) == [Prose(table.rstrip("\n"))]


def test_the_tail_hides_what_may_become_a_fence() -> None:
    splitter = Splitter()
    assert list(splitter.push("text\n\n``")) == [Prose("text")]
    assert splitter.tail.text == ""


@pytest.mark.parametrize("code", [False, True])
def test_a_line_without_end_is_broken(code: bool) -> None:
    text = ("```\n" if code else "") + "ab " * 400_000
    parts = split(text)
    assert max(len(part.text) for part in parts if isinstance(part, Prose | CodeText)) <= LONGEST_LINE + 1
    joined = "".join(part.text for part in parts if isinstance(part, Prose | CodeText))
    assert joined.replace("\n", "").strip() == ("ab " * 400_000).strip()


def test_lists_without_bottom_are_cut() -> None:
    deepest = max(
        part.level for part in split("\n".join("  " * n + "- x" for n in range(100))) if isinstance(part, Prose)
    )
    assert 5 <= deepest <= 10


@given(st.text(alphabet="ab`~-*1.# >|\n $\\", max_size=200), st.lists(st.integers(1, 9), max_size=40))
def test_how_the_text_arrives_does_not_matter(text: str, sizes: list[int]) -> None:
    assert split(text, sizes) == split(text)


@given(st.text(alphabet=st.characters(exclude_characters="`~\0\r", exclude_categories=["Cs"]), max_size=300))
def test_no_character_is_lost(text: str) -> None:
    shown = "".join(part.text for part in split(text) if isinstance(part, Prose))
    assert "".join(shown.split()) == "".join(text.split())


def test_what_may_still_change_stays_short() -> None:
    """So the cost is linear: only the tail is rendered again."""
    noise, splitter, longest = random.Random(1), Splitter(), 0
    for _ in range(16_000):
        list(splitter.push("word " * noise.randint(1, 12) + "\n" * noise.randint(1, 2)))
        longest = max(longest, len(splitter.tail.text))
    assert longest < 2 * LONGEST_LINE
