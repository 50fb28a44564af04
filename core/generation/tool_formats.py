"""The tool call formats of the model families as data: what opens a call, where its arguments begin, what closes it.

The chat template reveals which format a model uses. If the template does not support tools, the system prompt explains
them, in the Hermes format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.events import Message, Tool

NAME = r'"name"\s*:\s*"(?P<name>[^"]+)"\s*,\s*'
ARGUMENTS = r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
SPACE = " \t\r\n"


@dataclass(frozen=True)
class ToolFormat:
    """A tool call format.

    `openings`: texts that may begin a call; `more`: additional ones directly after a call.
    `header`: matches from the opening to the JSON arguments, with the group `name`; None if they are not JSON.
    `closings` and the characters `junk` may follow the arguments and are not part of the answer.
    `shown`: control tokens that must reach the parser.
    `begin` and `end`: written around the arguments of a forced call.
    `only_first`: only the start of an answer can open a call.
    `ends_reasoning`: a call may begin while the reasoning is still open.
    """

    name: str
    openings: tuple[str, ...]
    header: re.Pattern[str] | None
    closings: tuple[str, ...]
    begin: str
    end: str
    more: tuple[str, ...] = ()
    junk: str = SPACE
    shown: tuple[str, ...] = ()
    only_first: bool = False
    ends_reasoning: bool = False


HERMES = ToolFormat(
    name="hermes",
    openings=("<tool_call>", "<function="),
    header=re.compile(rf"<tool_call>\s*\{{\s*{NAME}{ARGUMENTS}"),
    closings=("</tool_call>", "</function>"),
    begin='<tool_call>\n{"name": "%s", "arguments": ',
    end="}\n</tool_call>",
    junk=SPACE + "}",
    shown=("<tool_call>", "</tool_call>"),
)
QWEN_XML = replace(HERMES, name="qwen-xml", begin="<tool_call>\n<function=%s>\n", end="</function>\n</tool_call>")
GLM = replace(
    HERMES,
    name="glm",
    begin="<tool_call>%s\n",
    end="</tool_call>",
    shown=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
LLAMA = ToolFormat(
    name="llama",
    openings=("<|python_tag|>", "{"),
    header=re.compile(rf'(?:<\|python_tag\|>)?\s*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?{NAME}{ARGUMENTS}'),
    closings=("<|eom_id|>", "<|python_tag|>"),
    begin='{"name": "%s", "parameters": ',
    end="}",
    junk=SPACE + "};",
    shown=("<|python_tag|>", "<|eom_id|>"),
    only_first=True,
)
MISTRAL = ToolFormat(
    name="mistral",
    openings=("[TOOL_CALLS]",),
    header=re.compile(
        rf"(?:\[TOOL_CALLS\])?\s*(?:\[?\s*\{{\s*{NAME}{ARGUMENTS}"
        r"|(?P<bare>[\w.-]+)\s*(?:\[CALL_ID\]\w+)?\[ARGS\]\s*(?=\{))"
    ),
    closings=(),
    begin='[TOOL_CALLS][{"name": "%s", "arguments": ',
    end="}]",
    more=("{",),
    junk=SPACE + "},]",
    shown=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
MISTRAL_BARE = replace(MISTRAL, name="mistral-bare", begin="[TOOL_CALLS]%s[ARGS]", end="")
HARMONY = ToolFormat(
    name="harmony",
    openings=(
        "<|channel|>commentary to=",
        "<|channel|>analysis to=",
        "<|start|>assistant to=",
        "<|start|>assistant<|channel|>commentary to=",
        " to=functions.",
    ),
    header=re.compile(r"[^{]*?to=(?:functions\.)?(?P<name>[\w.-]+)[^{]*?<\|message\|>\s*(?=\{)"),
    closings=("<|call|>", "<|end|>"),
    begin="<|channel|>commentary to=functions.%s <|constrain|>json<|message|>",
    end="",
    shown=("<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|start|>", "<|end|>"),
    ends_reasoning=True,
)
DEEPSEEK = ToolFormat(
    name="deepseek",
    openings=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    header=re.compile(
        r"(?:<｜tool▁calls▁begin｜>)?\s*<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[\w.-]+)"
        r"(?:\s*```json\s*|\s*<｜tool▁sep｜>\s*)(?=\{)"
    ),
    closings=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    begin="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>%s\n```json\n",
    end="\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    shown=(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
)
DEEPSEEK_PLAIN = replace(
    DEEPSEEK,
    name="deepseek-plain",
    begin="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>%s<｜tool▁sep｜>",
    end="<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
)
# Texts that occur only in templates of this format, most specific first.
SIGNS: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("<|channel|>", "functions."), HARMONY),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_BARE),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<｜tool▁calls▁begin｜>", "```json"), DEEPSEEK),
    (("<｜tool▁calls▁begin｜>",), DEEPSEEK_PLAIN),
    (("<arg_key>",), GLM),
    (("<function=", "<parameter="), QWEN_XML),
    (("<tool_call>",), HERMES),
    (("<|start_header_id|>", "tools"), LLAMA),
)
FORMATS = tuple(dict.fromkeys(found for _, found in SIGNS))


def format_of(template: str) -> ToolFormat:
    """Return the format that a chat template asks its model to write."""
    return next((found for signs, found in SIGNS if all(sign in template for sign in signs)), HERMES)


def knows_tools(template: str) -> bool:
    """Return whether a chat template supports tools."""
    return "tools" in template


def as_functions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Convert tools to the mappings that chat templates take."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters) or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Rewrite a conversation for a template without tools: listed in the system prompt, calls and results as text."""
    turns = [_spelled(message) for message in messages]
    if not tools:
        return turns
    listed = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in as_functions(tools))
    text = (
        f"You can call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with nothing but:\n"
        '<tool_call>\n{"name": "its name", "arguments": {its arguments}}\n</tool_call>'
    )
    if turns and turns[0].role == "system":
        return [replace(turns[0], content=f"{turns[0].content}\n\n{text}"), *turns[1:]]
    return [Message("system", text), *turns]


def _spelled(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = [f"{HERMES.begin % call.name}{call.arguments}{HERMES.end}" for call in message.tool_calls]
    text = "\n".join(part for part in (message.content, *calls) if part)
    return replace(message, content=text, tool_calls=())


def whole_call(text: str, tools: Sequence[Tool]) -> tuple[str, str] | None:
    """Return name and JSON arguments of a complete call in any of the tagged formats; None if it is not a call."""
    body = re.sub(r"^\s*<tool_call>|</tool_call>\s*$", "", text.strip()).strip()
    return _from_json(body) or _from_functions(body, tools) or _from_pairs(body, tools)


def _from_json(body: str) -> tuple[str, str] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return value["name"], arguments
    return value["name"], json.dumps(arguments, ensure_ascii=False)


def _from_functions(body: str, tools: Sequence[Tool]) -> tuple[str, str] | None:
    found = re.match(r"<function=([^>\s]+)>", body)
    if found is None:
        return None
    pairs = re.findall(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
    return found[1], _arguments(found[1], pairs, tools)


def _from_pairs(body: str, tools: Sequence[Tool]) -> tuple[str, str] | None:
    found = re.match(r"([\w.-]+)\s*(?=<arg_key>|$)", body)
    if found is None:
        return None
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", body, re.DOTALL)
    return found[1], _arguments(found[1], pairs, tools)


def _arguments(name: str, pairs: Sequence[tuple[str, str]], tools: Sequence[Tool]) -> str:
    """Convert tagged texts to JSON: strings where the tool's schema says so, otherwise parsed as JSON if possible."""
    properties = next((properties_of(tool) for tool in tools if tool.name == name), {})
    values = {key.strip(): _typed(text, properties.get(key.strip())) for key, text in pairs}
    return json.dumps(values, ensure_ascii=False)


def properties_of(tool: Tool) -> Mapping[str, Any]:
    """Return the schemas of a tool's arguments by name."""
    found = tool.parameters.get("properties")
    return found if isinstance(found, dict) else {}


def _typed(text: str, schema: Any) -> Any:
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
