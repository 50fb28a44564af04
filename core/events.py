"""Frozen records exchanged between the engine and its users: window, command line, server, tests.

Plain fields only (picklable, no torch, no Qt). Commands go down as `Request`, events come up as `Event`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.errors import HeteGenError
from core.spec import Budget, Hardware, ModelSpec, Plan

Role = Literal["system", "user", "assistant", "tool"]
Stop = Callable[[], bool]
"""Called between tokens, prefill chunks and loading steps; returning True ends the work at that point."""


def never() -> bool:
    """Return False: the Stop of work that is never ended early."""
    return False


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A call requested by the model. `arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `reasoning`: what a reasoning model thought before `content`.

    `pictures`: attached ones, each the content of a PNG, JPEG, WebP or GIF file. `tool_calls` belong to an assistant
    turn; a turn of role `tool` answers the call that `tool_call_id` names.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    pictures: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. None = the model's own generation_config, else the engine's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """One request to the engine: the whole conversation so far, ending with the turn to answer.

    `continue_reply`: the last message is the assistant's own unfinished reply, to be continued. `prompt`: a plain text
    to continue, instead of messages. `whole`: a conversation that does not fit is an error; no turns are dropped.
    `must_call`: names of tools of which the reply must call one. `json_schema`: the answer must be JSON that follows
    this schema (JSON text). `logprobs`: emit a Drawn event for every token, with this many alternatives.
    `conversation`: an id under which the KV cache is stored on disk, "" = not stored.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    continue_reply: bool = False
    prompt: str | None = None
    whole: bool = False
    tools: tuple[Tool, ...] = ()
    must_call: tuple[str, ...] = ()
    json_schema: str | None = None
    logprobs: int | None = None
    conversation: str = ""


AUTO, LOOKUP, SELF, MTP, NO_DRAFT = "auto", "lookup", "self", "mtp", "off"
"""Who drafts (`LoadOptions.draft`): the model's MTP head or int4 copy where it is expected to pay off, prompt lookup
alone, the copy or the head in any case, nobody; or the name of a model or assistant. Prompt lookup also drafts beside
a model."""


@dataclass(frozen=True)
class LoadOptions(Budget):
    """The budget of a load, as the planner takes it; the GPU to simulate ("vram=6GiB,link=12GB/s"); and who drafts:
    "auto", "lookup", "self", "mtp", "off", or the folder or Hub id of a small model with the same vocabulary, or of
    Gemma 4's assistant."""

    simulate_gpu: str | None = None
    draft: str = LOOKUP


@dataclass(frozen=True)
class Loading:
    """A model is being loaded. `phase` is one of LOADING_PHASES; `fraction` of the whole load, 0-1."""

    phase: str
    fraction: float


LOADING_PHASES = ("start", "read", "tokenizer", "measure", "weights", "convert", "place", "ready")


@dataclass(frozen=True)
class Checked:
    """A model can be loaded in place of the one in use, as far as is known before its weights are read."""


@dataclass(frozen=True)
class Unloaded:
    """The model in use was given up, because another one is about to take its memory."""


@dataclass(frozen=True)
class Loaded:
    """A model is ready. `format`: bf16, int8 or int4; `context` in tokens; sizes in bytes.

    `sees`: whether it accepts pictures. `plan`: where the weights are and why; with `spec` and `hardware` other plans
    can be tried (`planner.place` is pure).
    """

    name: str
    architecture: str
    format: str
    context: int
    parameters: int
    weight_bytes: int
    load_s: float
    can_chat: bool = True
    sees: bool = False
    plan: Plan | None = None
    spec: ModelSpec | None = None
    hardware: Hardware | None = None

    @property
    def format_name(self) -> str:
        """The format's display name: the files' own one if they are already quantised."""
        return self.spec.format_name(self.format) if self.spec else self.format

    @property
    def plan_reason(self) -> str:
        """Why the current plan was chosen, in a sentence; "" without a plan."""
        return self.plan.reason if self.plan else ""


@dataclass(frozen=True)
class Prefill:
    """The prompt is being read: `done` of `total` tokens, of which `reused` were already in the KV cache."""

    done: int
    total: int
    reused: int


@dataclass(frozen=True)
class Truncated:
    """The conversation is longer than the context: the oldest turns were left out of this reply's prompt."""

    dropped_messages: int
    dropped_tokens: int


@dataclass(frozen=True)
class Piece:
    """A run of whole characters of the reply. `kind` distinguishes the answer from the model's reasoning."""

    text: str
    kind: Literal["answer", "reasoning"] = "answer"


@dataclass(frozen=True)
class ToolCallPiece:
    """A part of a tool call: `id` and `name` in its first piece only, then `arguments` (JSON text) as they arrive."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Drawn:
    """One sampled token as text, its natural-log probability, and the likeliest alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Counted:
    """The number of tokens of a request's prompt."""

    tokens: int


@dataclass(frozen=True)
class ExpertShares:
    """Fractions (0-1) of chosen experts by where they were computed: on the GPU that holds them, on the GPU after a
    copy, on the CPU; and the number that the GPU holds."""

    on_card: float
    copied: float
    on_cpu: float
    held: int


@dataclass(frozen=True)
class Stats:
    """Statistics of the reply so far. Rates in tokens per second, times in seconds, None = not known yet.

    `drafter`: who drafted last, "" = nobody; `acceptance`: the fraction (0-1) of drafted tokens that were accepted.
    `experts`: for a mixture of experts with a GPU.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    ttft_s: float | None = None
    prompt_tok_s: float | None = None
    tok_s: float | None = None
    mean_tok_s: float | None = None
    context_used: int = 0
    context_limit: int = 0
    seed: int | None = None
    drafter: str = ""
    tokens_per_pass: float | None = None
    acceptance: float | None = None
    experts: ExpertShares | None = None


@dataclass(frozen=True)
class Replanned:
    """Weights were moved between devices; `reason` is one sentence for the user, `plan` the current placement."""

    reason: str
    plan: Plan | None = None


FinishReason = Literal["stop", "length", "context", "stopped"]
"""stop: the model ended; length: max_new_tokens reached; context: no room left; stopped: by the user."""


@dataclass(frozen=True)
class Finished:
    """The reply is complete; always the last event of a chat that did not fail. `stop_text`: the stop string found."""

    reason: FinishReason
    stats: Stats
    stop_text: str = ""


@dataclass(frozen=True)
class Failed:
    """The work ended with an error that a user can act on; always the last event."""

    error: HeteGenError


Event = (
    Loading
    | Checked
    | Unloaded
    | Loaded
    | Prefill
    | Truncated
    | Piece
    | ToolCallPiece
    | Drawn
    | Counted
    | Stats
    | Replanned
    | Finished
    | Failed
)
