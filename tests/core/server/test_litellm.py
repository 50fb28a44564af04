"""litellm against a real server, with OpenAI's and Anthropic's interface: what agents built on it need."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.server.server import Server
from tests.core.server.test_clients import PARAMETERS, SCHEMA, TOOL, TURNS

pytestmark = pytest.mark.filterwarnings("ignore")  # litellm's own code warns about itself
Ask = Callable[..., Any]


@pytest.fixture(params=["openai", "anthropic"])
def ask(request: pytest.FixtureRequest, any_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise its import accesses the network
    litellm = pytest.importorskip("litellm")
    address = any_server.address if request.param == "openai" else any_server.address.removesuffix("/v1")

    def ask(turns: list[Any], **more: Any) -> Any:
        return litellm.completion(
            model=f"{request.param}/any", api_base=address, api_key="any", messages=turns, temperature=0,
            num_retries=0, **more,
        )  # fmt: skip

    yield ask
    litellm.in_memory_llm_clients_cache.flush_cache()


def test_litellm_chats_over_two_turns_streams_and_stops(ask: Ask) -> None:
    text = ask(TURNS, max_tokens=24).choices[0].message.content
    assert text
    streamed = ask(TURNS, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    turns = [*TURNS, {"role": "assistant", "content": text}, {"role": "user", "content": "And the GPU?"}]
    assert ask(turns, max_tokens=24).choices[0].message.content
    stop = text[8:12]
    cut = ask(TURNS, max_tokens=24, stop=[stop]).choices[0]
    assert cut.message.content == text.partition(stop)[0]
    assert cut.finish_reason == "stop"


def test_litellm_calls_a_tool_whole_and_streamed_and_brings_its_result(ask: Ask) -> None:
    turns: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    asked: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 120}
    choice = ask(turns, **asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == set(PARAMETERS["properties"])
    deltas = [delta for chunk in ask(turns, stream=True, **asked) for delta in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
    turns += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    assert ask(turns, tools=[TOOL], max_tokens=24).choices[0].message.content


def test_litellm_gets_json_that_keeps_to_its_schema(ask: Ask) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    value = json.loads(ask(TURNS, max_tokens=80, response_format=wanted).choices[0].message.content)
    assert set(value) == {"city", "ok"}
