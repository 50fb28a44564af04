"""One reader per program: from its exported JSON to tables like our own.

ChatGPT and Open WebUI store trees, Claude trees or lists, LM Studio lists of versions. Jan, ShareGPT and programs that
speak OpenAI's or Anthropic's API store lists of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from app.conversations.imports.content import call, result, split_thought, text_of
from app.conversations.imports.said import Said, chained, role, seconds, table

Table = dict[str, Any]
LISTS = ("messages", "conversation", "conversations", "chat_messages", "turns", "history", "items", "input", "chat")
GROUPS = ("conversations", "chats", "threads", "data", "sessions", "items", "chat_sessions")
TITLES = ("title", "name", "summary", "topic", "subject")
TIMES = ("created_at", "create_time", "createdAt", "timestamp", "created", "time", "date")
SPEAKER = ("role", "from", "sender", "author", "speaker")


def conversations(saved: Any) -> Iterator[Any]:
    """Yield the single conversations of an export, each an input for `read`."""
    if isinstance(saved, dict):
        several = next((saved[key] for key in GROUPS if _are_conversations(saved.get(key))), None)
        if several is None:
            yield saved
        else:
            yield from several
    elif isinstance(saved, list):
        if saved and all(is_message(each) for each in saved):
            yield from _threads(saved)
        else:
            yield from saved
    else:
        raise TypeError(saved)


def title_of(saved: Any) -> str:
    """Return a conversation's title, "" if it has none."""
    if not isinstance(saved, dict):
        return ""
    return next((title for key in TITLES if isinstance(title := saved.get(key), str) and title.strip()), "")


def read(saved: Any) -> Table:
    """Read one conversation of any program. Raises KeyError, TypeError, ValueError, AttributeError."""
    if isinstance(saved, list):
        return _messages({"messages": saved})
    if isinstance(saved.get("chat"), dict):
        return read({"title": saved.get("title"), **saved["chat"]})
    for fits, reader in READERS:
        if fits(saved):
            return reader(saved)
    return _messages(saved)


def _chatgpt(saved: Table) -> Table:
    messages = []
    for name, node in saved["mapping"].items():
        message = node.get("message") or {}
        hidden = (message.get("metadata") or {}).get("is_visually_hidden_from_conversation")
        content = message.get("content") or {}
        unsaid = hidden or content.get("content_type") in ("user_editable_context", "model_editable_context")
        speaker = "system" if unsaid or not message else role((message.get("author") or {}).get("role"))
        text, aside = ("", "") if unsaid else _chatgpt_text(content, message, speaker)
        model = (message.get("metadata") or {}).get("model_slug") or ""
        made = seconds(message.get("create_time"))
        messages.append(Said(name, node.get("parent"), speaker, text, aside, made, str(model)))
    return table(saved.get("title"), messages, saved.get("current_node"))


def _chatgpt_text(content: Table, message: Table, speaker: str) -> tuple[str, str]:
    kind = content.get("content_type")
    if kind == "thoughts":
        return "", "\n\n".join(str(each.get("content") or each.get("summary") or "") for each in content["thoughts"])
    if kind == "reasoning_recap":
        return "", ""
    text, aside = text_of(content.get("parts", content.get("text", content.get("result"))))
    called = message.get("recipient") not in (None, "all")
    if speaker == "tool" or kind in ("code", "execution_output") or called:
        return "", result(text)
    return text, aside


def _open_webui(saved: Table) -> Table:
    history = saved["history"]
    messages = [_message(each, name, each.get("parentId")) for name, each in history["messages"].items()]
    system = (saved.get("params") or {}).get("system") or saved.get("system") or ""
    return table(title_of(saved), messages, history.get("currentId"), system=str(system))


def _claude(saved: Table) -> Table:
    messages = []
    for number, said in enumerate(saved["chat_messages"]):
        message = _message(said, said.get("uuid", number), said.get("parent_message_uuid"))
        messages.append(message)
    if not any(message.parent in {each.id for each in messages} for message in messages):
        messages = chained(messages)
        return table(title_of(saved), messages)
    return table(title_of(saved), messages, saved.get("current_leaf_message_uuid"))


def _lm_studio(saved: Table) -> Table:
    messages: list[Said] = []
    parents: list[Any] = [None]
    for number, entry in enumerate(saved["messages"]):
        chosen = entry.get("currentlySelected", len(entry["versions"]) - 1)
        for which, version in enumerate(entry["versions"]):
            steps = version.get("steps") or []
            texts = [_lm_studio_step(step) for step in steps] or [text_of(version.get("content"))]
            text = "\n\n".join(said for said, _ in texts if said)
            aside = "\n\n".join(beside for _, beside in texts if beside)
            model = ((version.get("senderInfo") or {}).get("senderName")) or ""
            name, speaker = (number, which), role(version["role"])
            messages.append(_with_thought(Said(name, parents[-1], speaker, text, aside, None, str(model))))
        parents.append((number, min(max(int(chosen), 0), len(entry["versions"]) - 1)))
    return table(title_of(saved), messages, parents[-1], system=str(saved.get("systemPrompt") or ""))


def _lm_studio_step(step: Table) -> tuple[str, str]:
    if step.get("type") not in (None, "contentBlock"):
        return "", ""
    text, aside = text_of(step.get("content"))
    thought = (step.get("style") or {}).get("type") == "thinking"
    return ("", text) if thought else (text, aside)


def _messages(saved: Table) -> Table:
    listed = next(saved[key] for key in LISTS if isinstance(saved.get(key), list))
    messages = [_message(each, number, None) for number, each in enumerate(listed)]
    system, _ = text_of(saved.get("system") or saved.get("systemPrompt") or saved.get("instructions"))
    return table(title_of(saved), chained(messages), system=system)


def _message(said: Table, name: Any, parent: Any) -> Said:
    if (kind := said.get("type")) in ("function_call", "function_call_output", "reasoning") and "role" not in said:
        text, aside = text_of([said])
        return Said(name, parent, "tool", "", aside or text)
    speaker = role(_speaker(said))
    text, aside = text_of(next((said[key] for key in _CONTENTS if said.get(key) not in (None, "", [])), None))
    if not text.strip() and isinstance(said.get("text"), str) and kind != "function":
        text = said["text"]
    thought = next((said[key] for key in _THOUGHTS if isinstance(said.get(key), str)), "")
    calls = [call(*_called(each)) for each in said.get("tool_calls") or []]
    asides = "\n\n".join(part for part in (thought, aside, *calls) if part)
    made = next((when for key in TIMES if (when := seconds(said.get(key))) is not None), None)
    if speaker == "tool":
        return Said(name, parent, "tool", "", "\n\n".join(part for part in (asides, result(text)) if part), made)
    model = said.get("model") if isinstance(said.get("model"), str) else ""
    return _with_thought(Said(name, parent, speaker, text + _attached(said), asides, made, model or ""))


_CONTENTS = ("content", "value", "text", "message", "parts", "body")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")


def _with_thought(said: Said) -> Said:
    if said.role != "assistant":
        return said
    text, thought = split_thought(said.content)
    aside = "\n\n".join(part for part in (said.aside, thought) if part)
    return Said(said.id, said.parent, said.role, text, aside, said.created, said.model)


def _called(each: Table) -> tuple[Any, Any]:
    inner = each.get("function")
    function = inner if isinstance(inner, dict) else each
    return function.get("name"), function.get("arguments", function.get("input", ""))


def _attached(said: Table) -> str:
    """Return the text of files attached to a question, as Claude exports it."""
    files = said.get("attachments") or []
    texts = [
        f"\n\n{file.get('file_name') or 'File'}:\n{file['extracted_content']}"
        for file in (files if isinstance(files, list) else [])
        if isinstance(file, dict) and isinstance(file.get("extracted_content"), str) and file["extracted_content"]
    ]
    return "".join(texts)


def _speaker(said: Table) -> Any:
    speaker = next(said[key] for key in SPEAKER if said.get(key))
    return speaker.get("role") or speaker.get("name") if isinstance(speaker, dict) else speaker


def is_message(value: Any) -> bool:
    """Whether this is a single message rather than a conversation."""
    if not isinstance(value, dict) or any(isinstance(value.get(key), list | dict) for key in ("messages", "mapping")):
        return False
    return any(key in value for key in SPEAKER) or value.get("type") in ("function_call", "function_call_output")


def _are_conversations(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not any(is_message(each) for each in value)


def _threads(messages: Iterable[Table]) -> Iterator[Table]:
    """Group messages by their thread: Jan's files and some logs mix threads."""
    threads: dict[str, list[Table]] = {}
    for message in messages:
        threads.setdefault(str(message.get("thread_id") or message.get("conversation_id") or ""), []).append(message)
    for thread in threads.values():
        times = [seconds(message.get("created_at")) for message in thread]
        if all(when is not None for when in times):
            thread.sort(key=lambda message: seconds(message.get("created_at")) or 0.0)
        yield {"messages": thread}


READERS: tuple[tuple[Callable[[Table], bool], Callable[[Table], Table]], ...] = (
    (lambda saved: isinstance(saved.get("mapping"), dict), _chatgpt),
    (lambda saved: isinstance(saved.get("history"), dict) and "messages" in saved["history"], _open_webui),
    (lambda saved: isinstance(saved.get("chat_messages"), list), _claude),
    (lambda saved: _has_versions(saved.get("messages")), _lm_studio),
)


def _has_versions(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(each, dict) and isinstance(each.get("versions"), list) for each in messages)
    )
