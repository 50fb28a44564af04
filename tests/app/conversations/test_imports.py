"""Exports of other chat programs, in the forms that those programs write."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.conversations.export import to_json
from app.conversations.imports.reader import NotAnExport, from_json, read_json
from app.conversations.imports.said import seconds
from app.conversations.saved_conversation import SavedConversation

Talk = list[tuple[str, str]]
TALK: Talk = [("user", "Why is the sky blue?"), ("assistant", "Rayleigh 🙂.")]


def shown(kept: SavedConversation) -> Talk:
    return [(turn.role, turn.content) for turn in kept.conversation.path()]


def read(value: Any) -> list[SavedConversation]:
    return from_json(json.dumps(value))


def node(id: str, parent: str | None, role: str = "", *parts: object, **message: Any) -> dict[str, Any]:
    """Return a node of ChatGPT's tree."""
    said = {
        "author": {"role": role}, "create_time": 1_700_000_000.5, "recipient": "all",
        "content": {"content_type": "text", "parts": list(parts)}, "metadata": {"model_slug": "gpt-4o"},
    } | message  # fmt: skip
    return {"id": id, "parent": parent, "children": [], "message": said if role else None}


def chatgpt() -> dict[str, Any]:
    nodes = [
        node("root", None),
        node("s", "root", "system", "", metadata={"is_visually_hidden_from_conversation": True}),
        node("u", "s", "user", "Why is the sky blue?"),
        node(
            "t",
            "u",
            "assistant",
            content={"content_type": "thoughts", "thoughts": [{"summary": "S", "content": "Hm."}]},
        ),
        node("r", "t", "assistant", content={"content_type": "reasoning_recap", "content": "Thought for 3 seconds"}),
        node("c", "r", "assistant", content={"content_type": "code", "text": "print(1)"}, recipient="python"),
        node("x", "c", "tool", content={"content_type": "execution_output", "text": "1"}),
        node("old", "u", "assistant", "Mie."),
        node("a", "x", "assistant", "Rayleigh 🙂."),
        node("old2", "a", "user", "an edit that is not shown"),
    ]
    return {"title": "Sky", "create_time": 1.0, "current_node": "a", "mapping": {each["id"]: each for each in nodes}}


def test_chatgpts_tree_comes_with_its_versions_thoughts_and_tools() -> None:
    (kept,) = read([chatgpt()])
    assert shown(kept)[:2] == TALK
    assert kept.conversation.title == "Sky"
    question, answer = kept.conversation.path()[:2]
    assert kept.conversation.versions(answer.id)[1] == 2
    assert "Hm." in answer.reasoning
    assert "print(1)" in answer.reasoning
    assert answer.receipt == {"model": "gpt-4o"}
    assert kept.created[question.id] == 1_700_000_000.5


def test_chatgpts_pictures_are_named_where_there_are_no_words() -> None:
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
    parts = {"content_type": "multimodal_text", "parts": [picture]}
    tree = {"u": node("u", None, "user", content=parts), "a": node("a", "u", "assistant", "A cat.")}
    (kept,) = read({"title": "T", "mapping": tree, "current_node": "a"})
    assert shown(kept) == [("user", "[image]"), ("assistant", "A cat.")]


def claude(**changes: Any) -> dict[str, Any]:
    messages = [
        {"uuid": "1", "sender": "human", "text": "Why is the sky blue?", "created_at": "2025-01-02T03:04:05.678901Z",
         "content": [{"type": "text", "text": "Why is the sky blue?"}], "attachments": [], "files": []},
        {"uuid": "2", "sender": "assistant", "text": "This block is not supported.", "content": [
            {"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "name": "search", "input": {"q": "sky"}},
            {"type": "tool_result", "content": [{"type": "text", "text": "found"}]},
            {"type": "text", "text": "Rayleigh 🙂."}]},
    ]  # fmt: skip
    return {"uuid": "c", "name": "Sky", "created_at": "2025-01-02T03:04:05Z", "chat_messages": messages} | changes


def test_claudes_messages_with_thoughts_and_tools() -> None:
    (kept,) = read([claude()])
    assert shown(kept) == TALK
    assert kept.conversation.title == "Sky"
    answer = kept.conversation.path()[1]
    assert all(word in answer.reasoning for word in ("Hm.", "search", "sky", "found"))
    assert next(iter(kept.created.values())) == pytest.approx(1735787045.678901)


def test_claudes_older_messages_have_only_a_text_and_attachments() -> None:
    messages = [
        {
            "uuid": "1",
            "sender": "human",
            "text": "Read it.",
            "attachments": [{"file_name": "a.txt", "extracted_content": "X"}],
        },
        {"uuid": "2", "sender": "assistant", "text": "Read."},
    ]
    (kept,) = read([claude(chat_messages=messages)])
    assert shown(kept) == [("user", "Read it.\n\na.txt:\nX"), ("assistant", "Read.")]


def test_claudes_branches() -> None:
    root = "00000000-0000-4000-8000-000000000000"
    said = [
        ("1", root, "human", "a"),
        ("2", "1", "assistant", "b"),
        ("3", "1", "assistant", "c"),
        ("4", "2", "human", "d"),
    ]
    messages = [{"uuid": u, "parent_message_uuid": p, "sender": s, "text": t} for u, p, s, t in said]
    (kept,) = read([claude(chat_messages=messages, current_leaf_message_uuid="4")])
    assert [text for _, text in shown(kept)] == ["a", "b", "d"]


def test_open_webuis_tree() -> None:
    folded = '<details type="reasoning" done="true" duration="2">\n<summary>Thought</summary>\n&gt; Hm.\n</details>\n'
    messages = {
        "1": {"id": "1", "parentId": None, "childrenIds": ["2", "3"], "role": "user", "content": "Why is the sky blue?",
              "timestamp": 1_700_000_000},
        "2": {"id": "2", "parentId": "1", "childrenIds": [], "role": "assistant", "content": f"{folded}Rayleigh 🙂.",
              "model": "llama3:8b", "timestamp": 1_700_000_001},
        "3": {"id": "3", "parentId": "1", "childrenIds": [], "role": "assistant", "content": "Mie."},
    }  # fmt: skip
    chat = {"title": "Sky", "params": {"system": "Be brief."}, "history": {"messages": messages, "currentId": "2"}}
    (kept,) = read([{"id": "x", "title": "Sky", "chat": {**chat, "messages": []}}])
    assert shown(kept) == TALK
    assert kept.conversation.system == "Be brief."
    assert kept.conversation.path()[1].reasoning == "Hm."
    assert kept.conversation.path()[1].receipt == {"model": "llama3:8b"}


def test_lm_studios_versions() -> None:
    def block(text: str, **more: Any) -> dict[str, Any]:
        return {"type": "contentBlock", "content": [{"type": "text", "text": text}], **more}

    steps = [
        block("Hm.", style={"type": "thinking"}),
        block("Rayleigh 🙂."),
        {"type": "debugInfoBlock", "debugInfo": "x"},
    ]
    question = {"type": "singleStep", "role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]}
    answers = [
        {"type": "multiStep", "role": "assistant", "senderInfo": {"senderName": "qwen"}, "steps": steps},
        {"type": "multiStep", "role": "assistant", "steps": [block("Mie.")]},
    ]
    messages = [{"versions": [question], "currentlySelected": 0}, {"versions": answers, "currentlySelected": 0}]
    (kept,) = read({"name": "Sky", "createdAt": 1, "systemPrompt": "Be brief.", "messages": messages})
    assert shown(kept) == TALK
    assert (kept.conversation.title, kept.conversation.system) == ("Sky", "Be brief.")
    answer = kept.conversation.path()[1]
    assert (answer.reasoning, kept.conversation.versions(answer.id)) == ("Hm.", (1, 2))


def jan(role: str, text: str, thread: str, when: int) -> dict[str, Any]:
    content = [{"type": "text", "text": {"value": text, "annotations": []}}]
    return {"id": f"{thread}{when}", "object": "thread.message", "thread_id": thread, "role": role, "content": content,
            "created_at": when, "status": "ready"}  # fmt: skip


def test_jans_lines_are_sorted_into_threads() -> None:
    lines = [
        jan("assistant", TALK[1][1], "a", 2), jan("user", "Why is the sky blue?", "a", 1), jan("user", "hi", "b", 1),
        jan("assistant", "<think>Hm.</think>\n\nHello.", "b", 2),
    ]  # fmt: skip
    first, second = from_json("\n".join(json.dumps(line) for line in lines) + "\n")
    assert shown(first) == TALK
    assert shown(second) == [("user", "hi"), ("assistant", "Hello.")]
    assert second.conversation.path()[1].reasoning == "Hm."


SHAREGPT = {"id": "1", "conversations": [
    {"from": "system", "value": "S"}, {"from": "human", "value": TALK[0][1]},
    {"from": "gpt", "value": TALK[1][1]}]}  # fmt: skip
PLAIN = {"messages": [{"role": "user", "content": TALK[0][1]}, {"role": "assistant", "content": TALK[1][1]}]}
PARTS = {"messages": [
    {"role": "user", "content": [{"type": "input_text", "text": TALK[0][1]}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": TALK[1][1], "annotations": []}]}]}  # fmt: skip
RESPONSES = {"input": [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TALK[0][1]}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
    {"type": "function_call_output", "call_id": "1", "output": "sky"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TALK[1][1]}]}]}  # fmt: skip
TOOLS = {"messages": [
    {"role": "developer", "content": "S"}, {"role": "user", "content": TALK[0][1]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{\"at\": \"sky\"}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "blue"},
    {"role": "assistant", "content": TALK[1][1], "reasoning_content": "Hm."}]}  # fmt: skip
ANTHROPIC = {"system": [{"type": "text", "text": "S"}], "messages": PARTS["messages"]}


@pytest.mark.parametrize(
    "value", [SHAREGPT, PLAIN, PARTS, RESPONSES, TOOLS, ANTHROPIC, {"conversation": PLAIN["messages"]}]
)
def test_lists_of_messages_in_many_dialects(value: dict[str, Any]) -> None:
    for saved in (value, [value], {"data": [value]}):
        (kept,) = read(saved)
        assert shown(kept) == TALK
    for text in (json.dumps(value), f"{json.dumps(value)}\n{json.dumps(value)}\n"):
        assert all(shown(kept) == TALK for kept in from_json(text))


def test_calls_and_results_of_tools_stay_beside_the_answer() -> None:
    (kept,) = read(TOOLS)
    assert kept.conversation.system == "S"
    answer = kept.conversation.path()[1]
    assert all(word in answer.reasoning for word in ("look", "sky", "blue", "Hm."))


def test_a_call_that_was_never_answered_is_kept() -> None:
    (kept,) = read({"messages": TOOLS["messages"][:3]})
    assert "look" in kept.conversation.path()[1].reasoning


@pytest.mark.parametrize("line", [PLAIN, PLAIN["messages"]])
def test_one_conversation_a_line(line: Any) -> None:
    imported = from_json("\r\n".join([json.dumps(line)] * 3))
    assert [shown(kept) for kept in imported] == [TALK] * 3


def test_one_message_a_line() -> None:
    text = "\n".join(
        json.dumps(each, ensure_ascii=False) for each in [*PLAIN["messages"], {"role": "user", "content": "a\u2028b"}]
    )
    (kept,) = from_json(text)
    assert shown(kept) == [*TALK, ("user", "a\u2028b")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_encoding_of_json_is_read(encoding: str, tmp_path: Path) -> None:
    for name, text in (("a.json", json.dumps(PLAIN, ensure_ascii=False)), ("b.jsonl", f"{json.dumps(PLAIN)}\n" * 2)):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert shown(read_json(tmp_path / name)[0]) == TALK


def test_the_archive_that_is_sent_is_read(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("export/conversations.json", json.dumps([chatgpt()]))
        archive.writestr("export/user.json", "{}")
        archive.writestr("chat.html", "<p>")
    (tmp_path / "export.zip").write_bytes(data.getvalue())
    assert shown(read_json(tmp_path / "export.zip")[0])[:2] == TALK
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x.json", "{}")
    with pytest.raises(NotAnExport):
        read_json(tmp_path / "other.zip")


BROKEN = [
    {"title": "Broken", "mapping": {"a": {"message": {"author": {"role": "robot"}, "content": {"parts": ["x"]}}}}},
    {"title": "Broken", "mapping": {"a": {"message": 3}}},
    {"name": "Broken", "chat_messages": [{"sender": "human", "text": ""}]},
    {"title": "Broken", "messages": [{"role": "user"}]},
    {"title": "Broken", "history": {"messages": [1]}},
]


@pytest.mark.parametrize("broken", BROKEN)
def test_one_unreadable_conversation_does_not_refuse_the_rest_and_is_named(broken: dict[str, Any]) -> None:
    imported = from_json(json.dumps([chatgpt(), broken, claude()]))
    assert [shown(kept)[:2] for kept in imported] == [TALK, TALK]
    assert imported.unreadable == ("Broken",)
    with pytest.raises(NotAnExport):
        read([broken])


def test_a_broken_conversation_among_our_own_is_named() -> None:
    saved = json.loads(to_json([*read([PLAIN]), *read([PLAIN])]))
    saved["conversations"][0] |= {"title": "Broken", "turns": [{"role": "robot"}]}
    imported = from_json(json.dumps(saved))
    assert imported.unreadable == ("Broken",)
    assert [shown(kept) for kept in imported] == [TALK]


def test_a_broken_line_is_named_by_its_number() -> None:
    imported = from_json(f'{json.dumps(PLAIN)}\n{{"messages": \n{json.dumps(PLAIN)}')
    assert (len(imported), imported.unreadable) == (2, ("#2",))


def test_chats_that_nobody_began_are_passed_over() -> None:
    imported = read([claude(chat_messages=[]), claude(), {"title": "New", "mapping": {"root": node("root", None)}}])
    assert (len(imported), imported.unreadable) == (1, ())  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [[], {"conversations": []}, [claude(chat_messages=[])], {"messages": []}])
def test_an_export_without_conversations_says_so(value: Any) -> None:
    with pytest.raises(NotAnExport):
        read(value)


def test_a_tree_that_runs_in_circles_ends() -> None:
    tree = {"a": node("a", "b", "user", "x"), "b": node("b", "a", "assistant", "y"), "c": node("c", None, "user", "z")}
    (kept,) = read({"mapping": tree, "current_node": "b"})
    assert shown(kept) == [("user", "z")]


def test_a_long_conversation_is_no_matter() -> None:
    tree = {
        str(n): node(str(n), str(n - 1) if n else None, "user" if n % 2 == 0 else "assistant", f"t{n}")
        for n in range(5000)
    }
    (kept,) = read({"mapping": tree, "current_node": "4999"})
    assert len(kept.conversation.path()) == 5000


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (1_700_000_000, 1.7e9), (1_700_000_000.5, 1_700_000_000.5), (1_700_000_000_000, 1.7e9), ("1700000000", 1.7e9),
        (1_700_000_000_000_000_000, 1.7e9), ("2023-11-14T22:13:20Z", 1.7e9), ("2023-11-14T22:13:20+00:00", 1.7e9),
        (None, None), ("yesterday", None), (True, None), (-3, None), (float("nan"), None),
        ([], None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_times_in_any_unit(value: Any, want: float | None) -> None:
    assert seconds(value) == want


def test_thoughts_and_folded_ones_are_taken_out_of_answers() -> None:
    said = [
        {"role": "user", "content": "<think>mine</think> stays"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."},
    ]
    (kept,) = read({"messages": said})
    assert shown(kept) == [("user", "<think>mine</think> stays"), ("assistant", "Yes.")]
    assert kept.conversation.path()[1].reasoning == "Hm."
