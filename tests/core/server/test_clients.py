"""Popular clients against a real server: conversation, streaming, a tool call, a JSON schema, a stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from core.server.server import Server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "ok": {"type": "boolean"}},
    "required": ["city", "ok"],
    "additionalProperties": False,
}
PARAMETERS: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
}  # fmt: skip
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
TURNS: list[Any] = [{"role": "user", "content": "What is HeteGen?"}]


@pytest.fixture
def openai_client(any_server: Server) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=any_server.address, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(any_server: Server) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic")
    base = any_server.address.removesuffix("/v1")
    with anthropic.Anthropic(base_url=base, api_key="any", max_retries=0) as client:
        yield client


def test_openai_chats_over_two_turns_and_streams_the_same(openai_client: Any) -> None:
    def ask(turns: list[Any], **more: Any) -> Any:
        return openai_client.chat.completions.create(
            model="any", messages=turns, max_tokens=24, temperature=0, seed=1, **more
        )

    first = ask(TURNS)
    text = first.choices[0].message.content
    assert text
    assert first.usage.completion_tokens <= 24
    streamed = list(ask(TURNS, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == text
    assert streamed[-1].usage.completion_tokens == first.usage.completion_tokens
    assert streamed[-2].choices[0].finish_reason == first.choices[0].finish_reason
    turns = [*TURNS, {"role": "assistant", "content": text}, {"role": "user", "content": "And the GPU?"}]
    second = ask(turns)
    assert second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_openai_calls_a_tool_and_reads_its_result(openai_client: Any) -> None:
    turns: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    create = openai_client.chat.completions.create
    asked = {"model": "any", "tools": [TOOL], "temperature": 0, "max_tokens": 120}
    choice = create(messages=turns, tool_choice="required", **asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    deltas = [
        delta
        for chunk in create(messages=turns, tool_choice="required", stream=True, **asked)
        for delta in chunk.choices[0].delta.tool_calls or ()
    ]
    assert [delta.index for delta in deltas] == [0] * len(deltas)
    assert [bool(delta.id) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
    answered = [*turns, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    assert create(messages=answered, **asked).choices[0].message.content


def test_openai_gets_json_that_keeps_to_its_schema(openai_client: Any) -> None:
    response = openai_client.chat.completions.create(
        model="any", messages=TURNS, max_tokens=80, temperature=1.0, seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
    )  # fmt: skip
    value = json.loads(response.choices[0].message.content)
    assert set(value) == {"city", "ok"}
    assert len(value["city"]) <= 12


def test_openai_stops_at_a_stop_string(openai_client: Any) -> None:
    whole = openai_client.chat.completions.create(model="any", messages=TURNS, max_tokens=24, temperature=0)
    stop = whole.choices[0].message.content[8:12]
    cut = openai_client.chat.completions.create(model="any", messages=TURNS, max_tokens=24, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == whole.choices[0].message.content.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"


def test_openais_responses_stream_to_the_same_text(openai_client: Any) -> None:
    whole = openai_client.responses.create(model="any", input="What is HeteGen?", max_output_tokens=60, temperature=0)
    with openai_client.responses.stream(
        model="any", input="What is HeteGen?", max_output_tokens=60, temperature=0
    ) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response() if whole.status == "completed" else None
    assert whole.output_text
    assert streamed is None or streamed.output_text == whole.output_text
    tool = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}
    called = openai_client.responses.create(
        model="any", input="Weather in Paris?", tools=[tool, {"type": "web_search"}], tool_choice="required",
        max_output_tokens=120, temperature=0,
    )  # fmt: skip
    [call] = [item for item in called.output if item.type == "function_call"]
    back = {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"}
    again = openai_client.responses.create(
        model="any", input=[{"role": "user", "content": "Weather in Paris?"}, call.model_dump(), back],
        max_output_tokens=16, temperature=0,
    )  # fmt: skip
    assert again.output_text


def test_anthropic_chats_streams_stops_and_calls_tools(anthropic_client: Any) -> None:
    create = anthropic_client.messages.create
    whole = create(model="any", max_tokens=24, messages=TURNS, extra_body={"temperature": 0})
    text = whole.content[0].text
    with anthropic_client.messages.stream(
        model="any", max_tokens=24, messages=TURNS, extra_body={"temperature": 0}
    ) as stream:
        assert "".join(stream.text_stream) == text
    stop = text[8:12]
    cut = create(model="any", max_tokens=24, messages=TURNS, stop_sequences=[stop], extra_body={"temperature": 0})
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    tool = {"name": "get_weather", "input_schema": PARAMETERS}
    called = create(
        model="any", max_tokens=120, messages=TURNS, tools=[tool], tool_choice={"type": "tool", "name": "get_weather"}
    )
    assert called.stop_reason == "tool_use"
    use = called.content[-1]
    assert set(use.input) == {"city"}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees"}]}
    turns = [*TURNS, {"role": "assistant", "content": called.content}, result]
    assert create(model="any", max_tokens=16, messages=turns, tools=[tool]).content[0].type == "text"
    counted = anthropic_client.messages.count_tokens(model="any", messages=TURNS).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_anthropic_gets_json_that_keeps_to_its_schema(anthropic_client: Any) -> None:
    answer = anthropic_client.messages.create(
        model="any", max_tokens=80, messages=TURNS,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )  # fmt: skip
    assert set(json.loads(answer.content[0].text)) == {"city", "ok"}
