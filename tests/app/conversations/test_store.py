from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.conversations.conversation import Conversation, Turn
from app.conversations.store import MARK_END, MARK_START, Store, title_from
from app.conversations.store_file import FLUSH_S, StoreFile
from core.errors import BadRequest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "chats.db")
    yield made
    made.close()


def talk(store: Store, *texts: str, title: str = "") -> Conversation:
    """Store a conversation of these texts, alternating between user and model."""
    conversation = Conversation(title=title)
    if title:
        store.put(conversation)
    parent = None
    for number, text in enumerate(texts):
        turn = Turn("assistant" if number % 2 else "user", text, end="stop" if number % 2 else "", parent=parent)
        store.add(conversation.id, conversation.add(turn))
        parent = turn.id
    return conversation


def reopened(store: Store, path: Path) -> Store:
    store.close()
    return Store(path)


def integrity(path: Path) -> str:
    database = sqlite3.connect(path)
    try:
        database.execute("INSERT INTO message_words(message_words) VALUES('integrity-check')")
        database.execute("INSERT INTO title_words(title_words) VALUES('integrity-check')")
        assert not database.execute("PRAGMA foreign_key_check").fetchall()
        result: str = database.execute("PRAGMA integrity_check").fetchone()[0]
        return result
    finally:
        database.rollback()
        database.close()


def test_a_conversation_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    conversation = talk(store, "Why is the sky blue?", "Rayleigh.")
    reply = conversation.path()[-1]
    reply.reasoning, reply.reasoning_s, reply.left_out = "Let me think.\0 Grüße 🙂", 1.5, 3
    reply.receipt = {"tok_s": 23.4, "seed": None, "sampling": {"top_k": 4}}
    store.keep(reply)
    again = reopened(store, tmp_path / "chats.db")
    assert again.load(conversation.id).path() == conversation.path()
    again.close()
    assert integrity(tmp_path / "chats.db") == "ok"


def test_versions_are_kept_and_the_shown_branch_is_remembered(store: Store, tmp_path: Path) -> None:
    conversation = talk(store, "one", "first reply", "two", "second reply")
    question, reply = conversation.path()[:2]
    other = conversation.add(Turn("assistant", "another reply", end="stop", parent=question.id))
    store.add(conversation.id, other)
    edited = conversation.add(Turn("user", "one, edited"))
    store.add(conversation.id, edited)
    assert [turn.content for turn in store.load(conversation.id).path()] == ["one, edited"]
    conversation.choose(reply.id)
    store.choose(reply.id)
    again = reopened(store, tmp_path / "chats.db")
    loaded = again.load(conversation.id)
    again.close()
    assert [turn.content for turn in loaded.path()] == ["one", "first reply", "two", "second reply"]
    assert loaded.versions(other.id) == (2, 2)
    assert loaded.turns() == conversation.turns()


def test_a_search_hit_in_a_hidden_version_can_be_shown(store: Store) -> None:
    conversation = talk(store, "one", "first", "two", "needle")
    hidden = conversation.path()[-1].id
    store.add(conversation.id, conversation.add(Turn("user", "rewritten")))
    (hit,) = store.search("needle")
    assert hit.turn == hidden
    store.choose(hit.turn)
    assert store.load(conversation.id).path()[-1].id == hidden


def test_the_list_is_pinned_first_then_latest(store: Store) -> None:
    first, second, third = (talk(store, text, "ok") for text in ("first", "second", "third"))
    store.pin(first.id, True)
    store.add(second.id, Turn("user", "more", parent=second.path()[-1].id))
    assert [entry.title for entry in store.entries()] == ["first", "second", "third"]
    store.pin(first.id, False)
    assert [entry.id for entry in store.entries()] == [second.id, third.id, first.id]


def test_the_title_is_the_first_question_until_a_person_gives_one(store: Store) -> None:
    conversation = talk(store, "## What is `RMSNorm`, really?", "A norm.", "And LayerNorm?")
    assert store.entry(conversation.id).title == "What is RMSNorm, really?"
    store.rename(conversation.id, "Norms")
    store.add(conversation.id, Turn("user", "Next", parent=conversation.path()[-1].id))
    assert store.entry(conversation.id).title == "Norms"


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("", ""),
        ("\n  \n```python\nx = 1\n```", "python"),
        ("Hello", "Hello"),
        ("word " * 30, "word word word word word word word word word…"),
        ("x" * 100, "x" * 48 + "…"),
    ],
)
def test_titles(question: str, title: str) -> None:
    assert title_from(question) == title


def test_deleting_can_be_undone_until_it_is_purged(store: Store, tmp_path: Path) -> None:
    conversation = talk(store, "a secret word: xylophone", "understood")
    other = talk(store, "stays")
    store.delete(conversation.id)
    assert [entry.id for entry in store.entries()] == [other.id]
    assert store.search("xylophone") == []
    store.purge(older_than_s=3600)
    store.undelete(conversation.id)
    assert len(store.search("xylophone")) == 1
    store.delete(conversation.id)
    store.purge()
    with pytest.raises(BadRequest):
        store.load(conversation.id)
    store.close()
    assert b"xylophone" not in (tmp_path / "chats.db").read_bytes()
    assert integrity(tmp_path / "chats.db") == "ok"


def test_options_and_system_prompt_belong_to_the_conversation(store: Store) -> None:
    conversation = Conversation(title="Poems", system="Rhyme.")
    store.put(conversation, {"temperature": 0.5})
    conversation.system = "Rhyme always."
    store.put(conversation)
    assert store.entry(conversation.id).options == {"temperature": 0.5}
    assert store.load(conversation.id).system == "Rhyme always."


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("quick", True), ("QUI", True), ("brown quick", True), ("quick red", False), ("", False), ("   ", False),
        ('"', True), ('quick"', True), ('"quick brown"', True), ("quick AND", False), ("quick*", True),
        ("(quick", True),
        ("NEAR(quick brown)", False),
        ("content:quick", False), ("über", True), ("uber", True), ("C++", True),
        ("日本", True), ("天気", True), ("雪", False), ("%", True), ("\\", True), ("100%", True), ("_x_", True),
        ("\0", False),
        ("'; DROP TABLE messages; --", False), ("🙂", True), ("a" * 5000, False), ("-quick", True), ("^quick", True),
    ],
)  # fmt: skip
def test_search_takes_whatever_is_typed(store: Store, query: str, found: bool) -> None:
    talk(store, 'The "quick" brown fox, 100% über C++ _x_ \\ 🙂 今日は日本の天気です', "Yes.", title="Fox")
    hits = store.search(query)
    assert bool(hits) == found
    assert all(hit.entry.title == "Fox" for hit in hits)


def test_snippets_mark_what_was_found_inside_words_without_spaces(store: Store) -> None:
    talk(store, "one", "我喜欢夏天来了, 夏天 (summer)")
    (hit,) = store.search("夏天")
    assert hit.snippet.count(f"{MARK_START}夏天{MARK_END}") == 2


def test_snippets_mark_the_words_and_titles_come_first(store: Store) -> None:
    body = talk(store, "a " * 200 + "zebra " + "b " * 200)
    titled = talk(store, "hello", title="Zebra crossing")
    hits = store.search("zebra")
    assert [hit.entry.id for hit in hits] == [titled.id, body.id]
    assert hits[0].turn is None
    assert f"{MARK_START}zebra{MARK_END}" in hits[1].snippet
    assert len(hits[1].snippet) < 100


def test_a_reply_is_found_when_it_has_ended_and_again_after_it_was_continued(store: Store) -> None:
    conversation = talk(store, "Go on")
    reply = conversation.add(Turn("assistant", "alpha", parent=conversation.path()[-1].id))
    store.add(conversation.id, reply)
    assert store.search("alpha") == []
    for end, text in (("stopped", "alpha beta"), ("", "alpha beta gamma"), ("stop", "alpha beta gamma delta")):
        reply.end, reply.content = end, text
        store.keep(reply)
        assert bool(store.search("alpha delta")) == (end == "stop")
    assert len(store.search("alpha beta")) == 1


def test_a_streaming_reply_gets_to_the_disk_without_another_call(store: Store, tmp_path: Path) -> None:
    conversation = talk(store, "Go on")
    reply = conversation.add(Turn("assistant", parent=conversation.path()[-1].id))
    store.add(conversation.id, reply)
    store.flush()
    reply.content = "partial words"
    store.keep(reply)

    def held() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.glob("chats.db*"))

    until = time.monotonic() + 60  # the machine may be busy; the kill test measures the exact bound
    while b"partial words" not in held():
        assert time.monotonic() < until
        time.sleep(FLUSH_S / 4)


def test_keeping_a_piece_never_waits_for_the_disk(disks: list[sqlite3.Connection], store: Store) -> None:
    conversation = talk(store, "Go on")
    reply = conversation.add(Turn("assistant", "x" * 200_000, parent=conversation.path()[-1].id))
    store.add(conversation.id, reply)
    store.flush()
    held = threading.Event()
    disks[-1].set_authorizer(lambda *_: sqlite3.SQLITE_OK if held.wait(60) else sqlite3.SQLITE_DENY)
    for _ in range(300):
        reply.content += " word"
        store.keep(reply)
    # Reached while the disk is still blocked.
    held.set()
    store.flush()
    assert store.load(conversation.id).turn(reply.id).content.count("word") == 300


def test_any_thread_may_write(store: Store) -> None:
    conversation = talk(store, "start")
    root = conversation.path()[0].id

    def add_some(name: int) -> None:
        for number in range(20):
            store.add(conversation.id, Turn("assistant", f"thread{name} number{number}", end="stop", parent=root))

    threads = [threading.Thread(target=add_some, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.entries()
    for thread in threads:
        thread.join()
    assert len(store.load(conversation.id).turns()) == 81


def test_two_thousand_messages_are_read_with_few_questions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = talk(store, *("Some **text** with code.\n" * 20 for _ in range(2000)))
    for turn in conversation.path()[1::50]:
        store.add(conversation.id, Turn("assistant", "other version", end="stop", parent=turn.parent))
    store.choose(conversation.turns()[1999].id)
    store.flush()

    asked, read = [], StoreFile.read

    def counted(file: StoreFile, sql: str, *values: object) -> list[Any]:
        asked.append(sql)
        return read(file, sql, *values)

    monkeypatch.setattr(StoreFile, "read", counted)
    assert len(store.load(conversation.id).path()) == 2000
    assert len(asked) == 3, "the conversation, its turns and their documents, not one question per turn"


def test_closing_twice_is_harmless(store: Store) -> None:
    store.close()
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "store"]
