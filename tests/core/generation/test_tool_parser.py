# ruff: noqa: E501
"""Tool calls are found in every format, however the text is split; text that is not a call stays text."""

from __future__ import annotations

import json

import pytest

from core.events import Tool, ToolCallPiece
from core.generation.tool_formats import (
    DEEPSEEK,
    DEEPSEEK_PLAIN,
    GLM,
    HARMONY,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_BARE,
    QWEN_XML,
    ToolFormat,
    format_of,
)
from core.generation.tool_parser import ToolParser

TOOLS = (
    Tool("look", "", {"type": "object", "properties": {"at": {"type": "string"}, "n": {"type": "integer"}}}),
    Tool("go", ""),
)
CALL = ("look", {"at": 'a "b" }]', "n": 2})
GO = ("go", {})
ARGUMENTS = json.dumps(CALL[1])

CASES: list[tuple[ToolFormat, str, str, list[tuple[str, object]]]] = [
    (HERMES, f'<tool_call>\n{{"name": "look", "arguments": {ARGUMENTS}}}\n</tool_call>', "", [CALL]),
    (HERMES, f'Yes.\n<tool_call>{{"name": "look", "arguments": {ARGUMENTS}}}</tool_call>\n<tool_call>\n{{"name": "go", "arguments": {{}}}}\n</tool_call>', "Yes.\n", [CALL, GO]),
    (HERMES, f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "look"}}</tool_call>', "", [CALL]),
    (HERMES, '<tool_call>no call</tool_call> x', "<tool_call>no call</tool_call> x", []),
    (HERMES, "a < b and <tool", "a < b and <tool", []),
    (QWEN_XML, '<tool_call>\n<function=look>\n<parameter=at>\na "b" }]\n</parameter>\n<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>', "", [CALL]),
    (GLM, '<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>a "b" }]</arg_value>\n<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call>', "", [CALL]),
    (LLAMA, f'{{"name": "look", "parameters": {ARGUMENTS}}}', "", [CALL]),
    (LLAMA, f'<|python_tag|>{{"type": "function", "name": "look", "parameters": {ARGUMENTS}}}; {{"name": "go", "parameters": {{}}}}', "", [CALL, GO]),
    (LLAMA, 'The set {"name": 1}', 'The set {"name": 1}', []),
    (LLAMA, '{"city": "Paris"}', '{"city": "Paris"}', []),
    (MISTRAL, f'[TOOL_CALLS][{{"name": "look", "arguments": {ARGUMENTS}}}, {{"name": "go", "arguments": {{}}}}]', "", [CALL, GO]),
    (MISTRAL_BARE, f"Well: [TOOL_CALLS]look[ARGS]{ARGUMENTS}[TOOL_CALLS]go[CALL_ID]a1[ARGS]{{}}", "Well: ", [CALL, GO]),
    (HARMONY, f"<|channel|>commentary to=functions.look <|constrain|>json<|message|>{ARGUMENTS}<|call|>", "", [CALL]),
    (HARMONY, f" to=functions.look<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>", "", [CALL]),
    (DEEPSEEK, f"Ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>go\n```json\n{{}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "Ok", [CALL, GO]),
    (DEEPSEEK_PLAIN, f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "", [CALL]),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize(("format", "text", "said", "calls"), CASES)
def test_calls_are_found_however_the_text_comes(
    format: ToolFormat, text: str, said: str, calls: list[tuple[str, object]], size: int
) -> None:
    parser = ToolParser(format, TOOLS, lambda: False)
    parts = [part for at in range(0, len(text), size) for part in parser.push(text[at : at + size])]
    parts += parser.finish()
    pieces = [part for part in parts if isinstance(part, ToolCallPiece)]
    assert "".join(part for part in parts if isinstance(part, str)) == said
    found = [
        (piece.name, json.loads("".join(other.arguments for other in pieces if other.index == piece.index)))
        for piece in pieces
        if piece.id
    ]
    assert found == calls
    assert len({piece.id for piece in pieces if piece.id}) == len(calls)


def test_reasoning_may_talk_of_calls() -> None:
    thinking = [True]
    parser = ToolParser(HERMES, TOOLS, lambda: thinking[0])
    call = '<tool_call>{"name": "go", "arguments": {}}</tool_call>'
    assert "".join(part for part in parser.push(call) if isinstance(part, str)) == call
    thinking[0] = False
    assert [part.name for part in parser.push(call) if isinstance(part, ToolCallPiece)] == ["go", ""]


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("... <|channel|>commentary to=functions.x", HARMONY),
        ("[TOOL_CALLS] x [ARGS]", MISTRAL_BARE),
        ("[TOOL_CALLS]", MISTRAL),
        ("<｜tool▁calls▁begin｜> ```json", DEEPSEEK),
        ("<arg_key>", GLM),
        ("<tool_call><function=a><parameter=b>", QWEN_XML),
        ("<tool_call>", HERMES),
        ("<|start_header_id|> tools", LLAMA),
        ("messages", HERMES),
    ],
)
def test_the_format_is_read_off_the_template(template: str, format: ToolFormat) -> None:
    assert format_of(template) is format
