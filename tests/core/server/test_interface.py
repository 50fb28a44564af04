"""The wire format, endpoint by endpoint, including known bugs of other servers that this one must not have."""

from __future__ import annotations

import json

import pytest

from core.documents.document import data_url
from core.server.server import Server
from tests.core.server.wire import QUESTION, ask, events
from tests.core.vision.seeing import picture

CHAT = "/v1/chat/completions"
SHORT = {"messages": QUESTION, "max_tokens": 8, "temperature": 0}


def test_models_are_a_list_with_the_loaded_one_first(server: Server) -> None:
    status, body = ask(server, "/v1/models")
    assert (status, body["object"]) == (200, "list")
    assert [(entry["id"], entry["loaded"]) for entry in body["data"]] == [
        ("HeteGen-Guide", True), ("someone/another-model", False),
    ]  # fmt: skip
    assert body["data"][0]["max_model_len"] == 1024
    assert ask(server, "/models") == (status, body), "clients are given the address with or without /v1"
    assert ask(server, "/v1/models/someone/another-model")[0] == 200
    assert ask(server, "/v1/models/nobody/none")[0] == 404


def test_usage_is_streamed_when_asked_for_and_only_then(server: Server) -> None:
    plain = events(server, CHAT, SHORT)
    assert all(chunk["choices"] for chunk in plain[:-1])
    assert not any("usage" in chunk for chunk in plain[:-1])
    asked = events(server, CHAT, SHORT | {"stream_options": {"include_usage": True}})
    assert asked[-1] == plain[-1] == "[DONE]"
    assert asked[-2]["choices"] == []
    assert asked[-2]["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in asked[:-2])


def test_a_reply_ends_for_the_reason_it_ended(server: Server) -> None:
    def reason(**more: object) -> str:
        return str(ask(server, CHAT, SHORT | more)[1]["choices"][0]["finish_reason"])

    assert reason() == "length"
    assert reason(max_tokens=None, max_completion_tokens=100) == "stop"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert reason(tools=[tool], tool_choice="required", max_tokens=12) == "length", "a call cut short is none"
    assert [chunk["choices"][0]["finish_reason"] for chunk in events(server, CHAT, SHORT)[:-1]][-2:] == [None, "length"]


def test_unknown_and_null_fields_are_ignored(server: Server) -> None:
    extra = {"store": True, "prompt_cache_key": "x", "logit_bias": None, "stop": None, "tools": None, "metadata": {}}
    turn = QUESTION[0] | {"refusal": None, "name": None, "audio": None}
    assert ask(server, CHAT, SHORT | extra | {"messages": [turn], "user": None, "n": None})[0] == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
         "messages"),
        ({"temperature": 99}, None),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, None),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_with_a_400(server: Server, change: dict[str, object], param: str | None) -> None:
    status, body = ask(server, CHAT, SHORT | change)
    assert (status, body["error"]["param"]) == (400, param)
    assert body["error"]["message"].strip()
    assert ask(server, CHAT, SHORT | change | {"stream": True})[0] == 400, "also where a stream was wanted"


def test_a_prompt_that_does_not_fit_is_an_error_and_not_cut(server: Server) -> None:
    turns = [{"role": "user", "content": "What is a plan? " * 20}, {"role": "assistant", "content": "It is. " * 900}]
    status, body = ask(server, CHAT, SHORT | {"messages": [*turns, *QUESTION]})
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


def test_another_model_of_this_disk_is_not_answered_for(server: Server) -> None:
    assert ask(server, CHAT, SHORT | {"model": "someone/another-model"})[0] == 404
    status, body = ask(server, CHAT, SHORT | {"model": "gpt-4o"})
    assert (status, body["model"]) == (200, "HeteGen-Guide")


def test_log_probabilities_come_with_their_tokens(server: Server) -> None:
    wanted = SHORT | {"logprobs": True, "top_logprobs": 3}
    ask(server, CHAT, SHORT)  # neither of the two below reads the prompt: in other blocks, it would round otherwise
    choice = ask(server, CHAT, wanted)[1]["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in tokens)
    streamed = [
        token
        for chunk in events(server, CHAT, wanted)[:-1]
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == tokens


def test_bias_and_penalties_change_what_is_drawn(server: Server) -> None:
    plain = ask(server, CHAT, SHORT)[1]["choices"][0]["message"]["content"]
    first = ask(server, CHAT, SHORT | {"max_tokens": 1, "logprobs": True})[1]["choices"][0]["message"]["content"]
    tokens = [token for token in range(2560) if token]
    biased = ask(
        server, CHAT, SHORT | {"max_tokens": 1, "logit_bias": {str(token): 0 for token in tokens} | {"40": 100}}
    )
    assert biased[1]["choices"][0]["message"]["content"] != first
    assert ask(server, CHAT, SHORT | {"frequency_penalty": 2, "presence_penalty": 2, "max_tokens": 30})[1]["choices"][
        0
    ]["message"]["content"].startswith(plain[:5])


def test_json_object_is_a_format_of_its_own(server: Server) -> None:
    body = SHORT | {"response_format": {"type": "json_object"}, "max_tokens": 200, "logit_bias": {"4": 20}}
    choice = ask(server, CHAT, body)[1]["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")


def test_completions_continue_a_text_as_it_stands(server: Server) -> None:
    body = {"prompt": "HeteGen is", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    whole = ask(server, "/v1/completions", body | {"echo": True})[1]["choices"][0]
    assert whole["text"].startswith("HeteGen is")
    assert 0 < len(whole["logprobs"]["tokens"]) <= 6
    streamed = events(server, "/v1/completions", body)
    assert "HeteGen is" + "".join(chunk["choices"][0]["text"] for chunk in streamed[:-1]) == whole["text"]
    assert ask(server, "/v1/completions", body | {"suffix": "x"})[0] == 400


def test_embeddings_are_refused_with_a_sentence(server: Server) -> None:
    status, body = ask(server, "/v1/embeddings", {"input": "x"})
    assert (status, body["error"]["code"]) == (400, "no_embeddings")


def test_health_metrics_and_timings_have_figures(server: Server) -> None:
    assert ask(server, "/health") == (200, {"status": "ok"})
    timings = ask(server, CHAT, SHORT)[1]["timings"]
    assert timings["predicted_n"] == 8
    assert timings["predicted_per_second"] > 0
    text = ask(server, "/metrics")[1]
    assert 'hetegen_requests_total{path="/v1/chat/completions",status="200"} 1' in text
    assert "hetegen_new_tokens_total 8" in text


def test_errors_have_the_shape_of_their_interface(server: Server) -> None:
    status, body = ask(server, "/v1/messages", {"messages": QUESTION})
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert ask(server, "/v1/nothing", {})[1]["error"]["message"]
    assert ask(server, "/v1/models", {})[0] == 405
    assert [ask(server, path)[0] for path in ("/", "/api/tags", "/favicon.ico")] == [404, 404, 404]


def test_a_picture_reaches_the_engine_and_a_model_that_only_reads_says_so(server: Server) -> None:
    url = data_url(picture(1))
    for parts in ([{"type": "image_url", "image_url": {"url": url}}], [{"type": "input_image", "image_url": url}]):
        asked = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]
        status, told = ask(server, "/v1/chat/completions", {"messages": asked})
        assert (status, "cannot see pictures" in told["error"]["message"]) == (400, True)
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    status, told = ask(server, "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": blocks}]})
    assert (status, "cannot see pictures" in told["error"]["message"]) == (400, True)
    source["data"] = "%%%"
    status, told = ask(server, "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": blocks}]})
    assert (status, "must be a data URL" in told["error"]["message"]) == (400, True)
