from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.events import Piece
from core.generation.reasoning import ReplySplitter


def split(
    parts: Sequence[str], stops: Sequence[str] = (), *, in_reasoning: bool = False, continuing: bool = False
) -> tuple[str, str, ReplySplitter]:
    """What came out as reasoning and as answer."""
    splitter = ReplySplitter(stops, in_reasoning=in_reasoning, continuing=continuing)
    pieces = [piece for part in parts for piece in splitter.push(part)]
    pieces += list(splitter.finish())
    return text_of(pieces, "reasoning"), text_of(pieces, "answer"), splitter


def text_of(pieces: Sequence[Piece], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("Hello.", "", "Hello."),
        ("<think>\nOne and one.\n</think>\n\nTwo.", "One and one.\n", "Two."),
        ("<think></think>Two.", "", "Two."),
        ("<think>No end", "No end", ""),
        ("  \n<think>a</think> b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("<|channel|>final<|message|>b", "", "b"),
        ("Write <think> to think.", "", "Write <think> to think."),
        ("a < b and c <thin", "", "a < b and c <thin"),
    ],
)
def test_reasoning_is_told_from_the_answer(text: str, reasoning: str, answer: str) -> None:
    for parts in ([text], list(text), [text[:7], text[7:]]):
        assert split(parts)[:2] == (reasoning, answer)


def test_reasoning_that_the_prompt_opened() -> None:
    assert split(["so it is.", "</think>", "Yes."], in_reasoning=True)[:2] == ("so it is.", "Yes.")


def test_white_space_of_a_carried_on_reply_is_kept() -> None:
    assert split([" and", " so on"], continuing=True)[:2] == ("", " and so on")


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stopped"),
    [
        ("one STOP two", ["STOP"], "one ", True),
        ("one ST two", ["STOP"], "one ST two", False),
        ("one ST", ["STOP"], "one ST", False),
        ("aab", ["ab"], "a", True),
        ("a\n\nb", ["\n\n"], "a", True),
        ("first second", ["second", "first"], "", True),
        ("xyz", ["yz", "xyz"], "", True),
        ("text", [""], "text", False),
    ],
)
def test_stop_strings_end_the_reply_and_are_not_shown(text: str, stops: list[str], shown: str, stopped: bool) -> None:
    for parts in ([text], list(text)):
        _, answer, splitter = split(parts, stops)
        assert (answer, splitter.stopped) == (shown, stopped)


def test_no_part_of_a_stop_string_is_shown_before_it_is_certain() -> None:
    splitter = ReplySplitter(["END"])
    shown = [text_of(list(splitter.push(letter)), "answer") for letter in "aEbENc"]
    assert shown == ["a", "", "Eb", "", "", "ENc"]
    assert [text_of(list(splitter.push(letter)), "answer") for letter in "END"] == ["", "", ""]
    assert splitter.stopped
    assert list(splitter.push("more")) == []
    assert list(splitter.finish()) == []


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "ST", "STOP", "a", " ", "\n", "<", "é", "<|end|>", "think>"]),
        max_size=12,
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
def test_how_the_text_arrives_makes_no_difference(words: list[str], sizes: list[int]) -> None:
    text = "".join(words)
    parts, at = [], 0
    while at < len(text):
        size = sizes[len(parts) % len(sizes)]
        parts.append(text[at : at + size])
        at += size
    whole, pieces = split([text], ["STOP"]), split(parts, ["STOP"])
    assert pieces[:2] == whole[:2]
    assert "STOP" not in pieces[1] + pieces[0]
