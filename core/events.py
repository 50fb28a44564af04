"""Frozen records that cross the seam between the engine and whoever listens: window, command line, tests.

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
"""Asked between tokens, prefill chunks and loading steps; True ends the work at the next of these points."""


def never() -> bool:
    """A Stop for work that nobody wants to end."""
    return False


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asked for. `arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `reasoning` is what a reasoning model thought before `content`.

    `pictures`: what was shown with it, each the content of a PNG, JPEG, WebP or GIF file.
    `tool_calls` belong to an assistant's turn; a turn of role `tool` answers the one that `tool_call_id` names.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    pictures: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. None = the model's own generation_config, else the engine's default."""

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
    """One question to the engine: the whole conversation so far, ending with the turn to answer.

    `continue_reply`: the last message is the assistant's own unfinished reply, to be carried on.
    `prompt`: a text to continue as it stands, instead of messages. `whole`: a conversation that does not fit is an
    error; nothing of it is left out. `must_call`: names of tools of which the reply is to call one.
    `json_schema`: the answer is JSON that this schema (JSON text) allows. `logprobs`: a Drawn event for every token,
    with this many alternatives. `conversation`: an id under which what was read is kept on disk, "" = it is not.
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
"""Who drafts (`LoadOptions.draft`): the model's MTP head or int4 copy where that is expected to pay, prompt lookup
alone, the copy or the head in any case, nobody; or a model's name. Prompt lookup drafts beside a model."""


@dataclass(frozen=True)
class LoadOptions(Budget):
    """The budget of a load, which the planner takes as it is; the GPU to simulate ("vram=6GiB,link=12GB/s"); and who
    drafts ahead: "auto", "lookup", "self", "mtp", "off", or the folder or Hub id of a small model of the same
    vocabulary."""

    simulate_gpu: str | None = None
    draft: str = LOOKUP


@dataclass(frozen=True)
class Loading:
    """A model is being made ready. `phase` is one of LOADING_PHASES; `fraction` of the whole load, 0-1."""

    phase: str
    fraction: float


LOADING_PHASES = ("start", "read", "measure", "weights", "convert", "place", "tokenizer", "ready")


@dataclass(frozen=True)
class Loaded:
    """A model is ready. `format` as in the contracts (bf16, int8, int4); `context` in tokens; sizes in bytes.

    `sees`: pictures can be shown to it. `plan` says where the weights lie and why; with `spec` and `hardware` others
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
        """What people call the format: of files that are quantised already their own word."""
        return self.spec.format_name(self.format) if self.spec else self.format

    @property
    def plan_reason(self) -> str:
        """Why the plan in force was chosen, in a sentence; "" without a plan."""
        return self.plan.reason if self.plan else ""


@dataclass(frozen=True)
class Prefill:
    """The prompt is being read: `done` of `total` tokens, of which `reused` were in the KV cache already."""

    done: int
    total: int
    reused: int


@dataclass(frozen=True)
class Truncated:
    """The conversation is longer than the context: these oldest turns were left out of this reply's prompt."""

    dropped_messages: int
    dropped_tokens: int


@dataclass(frozen=True)
class Piece:
    """A run of whole characters of the reply. `kind` tells the answer from the model's reasoning."""

    text: str
    kind: Literal["answer", "reasoning"] = "answer"


@dataclass(frozen=True)
class ToolCallPiece:
    """A part of a tool call: `id` and `name` in its first piece only, then `arguments` (JSON text) as they come."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Drawn:
    """One drawn token as text, its natural-log probability, and the likeliest tokens instead of it."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Counted:
    """How many tokens a request's prompt has."""

    tokens: int


@dataclass(frozen=True)
class ExpertShares:
    """Where the experts that tokens chose were computed, 0-1: on the card where they lie, on it after a copy, on the
    processor; and how many the card holds."""

    on_card: float
    copied: float
    on_cpu: float
    held: int


@dataclass(frozen=True)
class Stats:
    """Figures of the reply so far. Rates in tokens per second, times in seconds, None = not known yet.

    `drafter` drafted last, "" = nobody did; `acceptance`: the share (0-1) of drafted tokens that were right.
    `experts`: of a mixture beside a card.
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
    """Weights moved between devices in mid-run; `reason` is one sentence for people, `plan` where they are now."""

    reason: str
    plan: Plan | None = None


FinishReason = Literal["stop", "length", "context", "stopped"]
"""stop: the model ended; length: max_new_tokens; context: no room left; stopped: asked to by the user."""


@dataclass(frozen=True)
class Finished:
    """The reply is complete; always the last event of a chat that did not fail. `stop_text`: the stop string met."""

    reason: FinishReason
    stats: Stats
    stop_text: str = ""


@dataclass(frozen=True)
class Failed:
    """The work ended with an error that a user can act on; always the last event."""

    error: HeteGenError


Event = (
    Loading
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
