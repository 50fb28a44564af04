from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QCoreApplication
from pytestqt.qtbot import QtBot

from app.conversations.conversation import Conversation, Turn
from app.conversations.export import to_json, to_markdown
from app.conversations.imports.reader import NotAnExport, from_json, read_json
from app.conversations.saved_conversation import SavedConversation
from app.i18n.translator import install


def sample() -> SavedConversation:
    conversation = Conversation(title="Sky & <sea>", system="Be brief.\nBe kind.")
    question = conversation.add(Turn("user", "Why is the sky blue?"))
    figures: dict[str, object] = {"model": "tiny", "tok_s": 23.44, "ttft_s": 0.61, "new_tokens": 1412, "seed": None}
    first = Turn("assistant", "Rayleigh.", "Hm.", 1.5, "stop", figures, 2, parent=question.id)
    conversation.add(first)
    conversation.add(Turn("assistant", "Mie?", end="stopped", parent=question.id))
    conversation.choose(first.id)
    conversation.add(Turn("user", "```python\nprint('🙂')\n```", parent=first.id))
    return SavedConversation(conversation, True, {"top_k": 3}, {question.id: 1_700_000_000.5})


def anonymous(kept: SavedConversation) -> list[tuple[object, ...]]:
    """Return the tree without ids: what must survive a round trip."""
    turns = kept.conversation.turns()
    place = {turn.id: number for number, turn in enumerate(turns)}
    return [
        (t.role, t.content, t.reasoning, t.reasoning_s, t.end, t.receipt, t.left_out, place.get(t.parent or ""),
         kept.created.get(t.id)) for t in turns
    ]  # fmt: skip


def test_json_comes_back_as_it_was_under_new_ids() -> None:
    kept = sample()
    (again,) = from_json(to_json([kept]))
    assert anonymous(again) == anonymous(kept)
    assert (again.pinned, again.options, again.conversation.title) == (True, {"top_k": 3}, "Sky & <sea>")
    assert again.conversation.system == kept.conversation.system
    shown = [turn.content for turn in kept.conversation.path()]
    assert [turn.content for turn in again.conversation.path()] == shown
    ids = {turn.id for turn in kept.conversation.turns()}
    assert ids.isdisjoint(turn.id for turn in again.conversation.turns())


def test_markdown_shows_the_branch_a_person_sees() -> None:
    text = to_markdown(sample())
    assert text.startswith("# Sky & <sea>\n\n> System prompt: Be brief.\n> Be kind.\n\n## You · 20")
    assert "## tiny\n\n<details><summary>Reasoning</summary>\n\nHm." in text
    assert "*23.4 tokens/s, 0.61 s to first token, 1,412 tokens*" in text
    assert "```python\nprint('🙂')\n```" in text
    assert "Mie?" not in text


def test_markdown_is_in_the_windows_language(qtbot: QtBot) -> None:
    words = install("de")
    try:
        text = to_markdown(sample())
    finally:
        QCoreApplication.removeTranslator(words)
    assert "> Systemanweisung: Be brief.\n> Be kind.\n\n## Sie · 20" in text
    assert "<summary>Überlegung</summary>" in text
    assert "*23,4 Tokens/s, 0,61 s bis zum ersten Token, 1.412 Tokens*" in text


def test_an_empty_conversation_can_be_exported() -> None:
    assert to_markdown(SavedConversation(Conversation())) == "# Conversation\n"
    (again,) = from_json(to_json([SavedConversation(Conversation())]))
    assert again.conversation.turns() == []


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "image_url"}]}]}',
        '[{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
        '[{"title": "T", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": "b"}]}]',
    ],
)
def test_message_lists_of_other_programs_can_be_read(text: str) -> None:
    (kept,) = from_json(text)
    assert [(turn.role, turn.content) for turn in kept.conversation.path()] == [("user", "a"), ("assistant", "b")]
    assert kept.conversation.system == "S"
    assert kept.conversation.path()[1].end == "stop"


def test_halves_of_surrogate_pairs_are_replaced_wherever_they_stand() -> None:
    text = (
        to_json([sample()])
        .replace("Rayleigh", "\\ud800 \\ud83d\\ude42")
        .replace("tiny", "\\udc00")
        .replace("top_k", "\\ud800")
    )
    found = from_json(text)
    assert [turn.content for turn in found[0].conversation.turns()][1] == "\ufffd 🙂."
    to_json(found).encode("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "3", '"x"', "{}", '[{"a": 1}]', '{"messages": 3}', '{"messages": [{"role": "user"}]}',
        '{"format": "hetegen-conversations", "version": 2, "conversations": []}',
        '{"format": "hetegen-conversations", "version": "1", "conversations": []}',
        '{"format": "hetegen-conversations", "version": 1}',
        '{"format": "hetegen-conversations", "version": 1, "conversations": [{"title": "t", "turns": [{"id": "a", '
        '"parent": "nobody", "role": "user", "content": "x"}]}]}',
        '{"format": "hetegen-conversations", "version": 1, "conversations": [{"title": "t", "turns": [{"id": "a", '
        '"parent": null, "role": "robot", "content": "x"}]}]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.json"
    path.write_text(text, "utf-8")
    with pytest.raises(NotAnExport) as caught:
        read_json(path)
    assert caught.value.what == "chats.json cannot be imported."
    assert caught.value.why


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\x00\xfe")
    for name in ("binary.json", "missing.json"):
        with pytest.raises(NotAnExport):
            read_json(tmp_path / name)


KEYS = ["format", "version", "conversations", "messages", "role", "content", "turns", "title", "id"]
LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner)))
def test_no_json_at_all_makes_it_crash(value: object) -> None:
    for saved in (value, {"format": "hetegen-conversations", "version": 1, "conversations": value}):
        try:
            found = from_json(json.dumps(saved))
        except NotAnExport:
            continue
        assert all(isinstance(kept, SavedConversation) for kept in found)
