"""Request bodies as pydantic models. Unknown fields and nulls are ignored, because clients keep adding fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class Lenient(BaseModel):
    """A model that ignores unknown fields."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Part(Lenient):
    """A part of a message's content in OpenAI's two APIs; Anthropic's pictures have a `source`."""

    type: str
    text: str | None = None
    image_url: str | Json | None = None
    source: Json | None = None


Content = str | list[Part] | None


class FunctionCall(Lenient):
    """A function call, with arguments as JSON text or as an object."""

    name: str
    arguments: str | Json | None = None


class AskedCall(Lenient):
    """A call made by an earlier assistant turn."""

    id: str | None = None
    function: FunctionCall


class ChatMessage(Lenient):
    """One message of OpenAI's chat API."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[AskedCall] | None = None
    tool_call_id: str | None = None


class Function(Lenient):
    """A function that may be called."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[\w.:-]+$")
    description: str | None = None
    parameters: Json | None = None


class ChatTool(Lenient):
    """A tool of OpenAI's chat API."""

    type: str = "function"
    function: Function | None = None


class JsonSchema(Lenient):
    """A schema that the answer must follow."""

    schema_: Json | None = Field(default=None, alias="schema")


class ResponseFormat(Lenient):
    """The format of the answer: text, JSON, or JSON with a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Lenient):
    """What a stream contains besides the answer."""

    include_usage: bool | None = None


class SamplingFields(Lenient):
    """Sampling parameters of both of OpenAI's older APIs."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[int, float] | None = None


class ChatCompletion(SamplingFields):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[ChatTool] | None = None
    tool_choice: str | Json | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class Completion(SamplingFields):
    """POST /v1/completions."""

    prompt: str | list[str] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)


class ResponseItem(Lenient):
    """One item of a response's input: a message, a function call, or its output."""

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class ResponseTool(Lenient):
    """A tool of OpenAI's responses API."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Json | None = None


class TextFormat(Lenient):
    """The format of a response's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: Json | None = Field(default=None, alias="schema")


class TextOptions(Lenient):
    """Options of a response's text."""

    format: TextFormat | None = None


class ResponseCreate(Lenient):
    """POST /v1/responses."""

    model: str | None = None
    input: str | list[ResponseItem]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | Json | None = None
    text: TextOptions | None = None
    previous_response_id: str | None = None
    background: bool | None = None


class Block(Lenient):
    """A content block of Anthropic's API."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Json | None = None
    tool_use_id: str | None = None
    content: str | list[Part] | None = None
    source: Json | None = None


class AnthropicMessage(Lenient):
    """One message of Anthropic's API."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(Lenient):
    """A tool of Anthropic's API."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: Json | None = None


class AnthropicChoice(Lenient):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class OutputConfig(Lenient):
    """The format of Anthropic's answer."""

    format: TextFormat | None = None


class CountTokens(Lenient):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[Part] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicChoice | None = None


class MessageCreate(CountTokens):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: OutputConfig | None = None
    output_format: TextFormat | None = None
