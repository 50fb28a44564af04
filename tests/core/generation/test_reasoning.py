from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.events import Piece
from core.generation.reasoning import ANY, ReplySplitter
from core.generation.thought_tags import ANSWERS, THOUGHTS, Marks, marks_of


def split(
    parts: Sequence[str], stops: Sequence[str] = (), *, marks: Marks = ANY, closing: str = ""
) -> tuple[str, str, ReplySplitter]:
    """Return the reasoning and the answer that were emitted."""
    splitter = ReplySplitter(stops, marks, closing)
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


MODELS_MARKS = [(*thought, *ANSWERS[number % len(ANSWERS)]) for number, thought in enumerate(THOUGHTS)]


@pytest.mark.parametrize(("opens", "closes", "begins", "ends"), MODELS_MARKS)
def test_marks_of_thoughts_and_answers_are_not_shown(opens: str, closes: str, begins: str, ends: str) -> None:
    text = f"{opens}\nSo {begins} it is.\n{closes}\n\n{begins}\nTwo <b>,\n\n three.\n{ends}\n"
    for parts in ([text], list(text), [text[:9], text[9:]]):
        assert split(parts)[:2] == (f"So {begins} it is.\n", "Two <b>,\n\n three.")


@pytest.mark.parametrize(
    "text", ["<answer>42</answer>", "Use <response> tags.", "a</answer>", "<output>\n", "x <|end|> y"]
)
def test_an_answer_without_a_thought_keeps_its_marks(text: str) -> None:
    plain = marks_of("{{ messages }}", ())
    assert split([text], marks=plain)[:2] == ("", text)


def test_the_end_of_a_wrapped_answer_is_dropped_once() -> None:
    assert split(list("<think>a</think><answer>b</answer> and </answer>"))[1] == "band </answer>"


@pytest.mark.parametrize(
    ("template", "added", "text"),
    [
        ("{{ '<ponder>' }}{{ '</ponder>' }}", (), "<ponder>a</ponder>b"),
        ("", ("<|cot_start|>", "<|cot_end|>"), "<|cot_start|>a<|cot_end|>b"),
        ("", ("[REASONING]", "[/REASONING]"), "[REASONING]a[/REASONING]b"),
        ("", ("<|begin_inner_thought|>", "<|end_inner_thought|>"), "<|begin_inner_thought|>a<|end_inner_thought|>b"),
        ("", ("<my_answer>", "</my_answer>"), "<think>a</think><my_answer>b</my_answer>"),
        ("", ("<|BEGIN_ANSWER|>", "<|END_ANSWER|>"), "<think>a</think><|BEGIN_ANSWER|>b<|END_ANSWER|>"),
    ],
)
def test_a_models_own_marks_are_found_in_its_template_and_tokens(
    template: str, added: tuple[str, ...], text: str
) -> None:
    assert split(list(text), marks=marks_of(template, added))[:2] == ("a", "b")


def test_a_tools_answer_is_no_answer() -> None:
    marks = marks_of("<tool_response></tool_response>", ("<tool_response>", "</tool_response>"))
    assert not {"<tool_response>"} & {pair[0] for pair in marks.answers}


def test_whatever_a_template_writes_around_a_thought_is_a_mark() -> None:
    marks = marks_of("", (), ("Here is what I think:", "Here is what I say:"))
    text = "Here is what I think: a Here is what I say: b"
    assert split(list(text), marks=marks)[:2] == ("a ", "b")


def test_half_a_mark_at_the_break_is_not_shown_twice() -> None:
    again = ReplySplitter()
    again.replay("<think>a</thi")
    pieces = [*again.push("nk>b"), *again.finish()]
    assert (text_of(pieces, "reasoning"), text_of(pieces, "answer")) == ("", "b")
    again = ReplySplitter()
    again.replay("a <")
    pieces = [*again.push(" b"), *again.finish()]
    assert text_of(pieces, "answer") == " b"


def test_reasoning_that_the_prompt_opened() -> None:
    assert split(["so it is.", "</think>", "Yes."], closing="</think>")[:2] == ("so it is.", "Yes.")


def test_white_space_of_a_carried_on_reply_is_kept() -> None:
    splitter = ReplySplitter()
    splitter.replay("one")
    assert text_of([*splitter.push(" and"), *splitter.finish()], "answer") == " and"


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
