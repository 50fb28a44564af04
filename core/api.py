"""The engine as a library: load a model, ask it, or plan without loading. Errors are raised; importing this is cheap.

    with load("Qwen/Qwen3-4B", vram="6GiB") as model:
        for text in model.stream("Why is the sky blue?", temperature=0.7):
            print(text, end="", flush=True)

`core.engine` is the same engine with events, for a window or a server.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from core.errors import BadRequest, HeteGenError, ModelNotFound
from core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Loaded,
    Loading,
    LoadOptions,
    Message,
    Piece,
    Replanned,
    Request,
    Sampling,
    Stats,
    Stop,
    never,
)
from core.paths import SHAPE_PREFIX, cache_folder, gpu_runtime
from core.remote.endpoint import PREFIX as REMOTE_PREFIX
from core.spec import FormatWish, Hardware, KvFormat, ModelSpec, Plan
from core.startup.environment import importing, prepare_environment
from core.units import parse_size

if TYPE_CHECKING:  # these import torch, which takes seconds
    from core.engine import Engine
    from core.hub.client import Client
    from core.hub.gguf_choices import Judged
    from core.remote.engine import RemoteEngine

Progress = Callable[[Loading], None]
Messages = str | Iterable[Message | Mapping[str, str]]
"""A question, or a conversation: records or dicts with `role` and `content`, the turn to answer last."""
Size = int | str
"""Bytes, or text such as "6GiB"."""

REMOTE_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[^\s:]+)?")


@dataclass
class Answer:
    """A whole reply. `reasoning`: what a reasoning model thought before `text`."""

    text: str = ""
    reasoning: str = ""
    finish_reason: FinishReason = "stop"
    stats: Stats = field(default_factory=Stats)

    def add(self, event: Event) -> None:
        """Add the next event of the reply."""
        match event:
            case Piece(text, "answer"):
                self.text += text
            case Piece(text):
                self.reasoning += text
            case Finished(reason, stats):
                self.finish_reason, self.stats = reason, stats
            case _:
                pass


@dataclass(frozen=True)
class Planned:
    """A plan, with the model and the machine that it was made for."""

    plan: Plan
    spec: ModelSpec
    hardware: Hardware

    def explain(self) -> list[str]:
        """Return the plan in sentences: what is placed where, and why."""
        from core.planning.planner import explain

        return list(explain(self.plan, self.spec, self.hardware))


class Model:
    """A loaded model: one reply at a time. `close` or the end of a `with` block frees its memory."""

    def __init__(self, engine: Engine | RemoteEngine, loaded: Loaded) -> None:
        self._engine = engine
        self._loaded = loaded
        self._plan = loaded.plan

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The model's short name."""
        return self._loaded.name

    @property
    def context(self) -> int:
        """Maximum number of tokens of a conversation."""
        return self._loaded.context

    @property
    def plan(self) -> Plan:
        """The current placement of the weights; it changes when the machine's free memory does."""
        assert self._plan is not None
        return self._plan

    def explain(self) -> list[str]:
        """Return the plan in sentences."""
        loaded = self._loaded
        assert loaded.spec is not None
        assert loaded.hardware is not None
        return Planned(self.plan, loaded.spec, loaded.hardware).explain()

    def stream(self, messages: Messages, stop: tuple[str, ...] = (), **sampling: Any) -> Generator[str, None, Answer]:
        """Yield the answer in runs of whole characters, without its reasoning; the generator's return value is the
        Answer.

        `sampling`: the fields of `core.events.Sampling` (temperature, top_k, top_p, min_p, repetition_penalty, seed,
        max_new_tokens); fields not given use the model's own defaults. Raises HeteGenError.
        """
        answer = Answer()
        for event in self.events(Request(conversation(messages), Sampling(**sampling), stop)):
            answer.add(event)
            if isinstance(event, Piece) and event.kind == "answer":
                yield event.text
        return answer

    def generate(self, messages: Messages, stop: tuple[str, ...] = (), **sampling: Any) -> Answer:
        """Return the whole answer; arguments as for `stream`. Raises HeteGenError."""
        answer = Answer()
        for event in self.events(Request(conversation(messages), Sampling(**sampling), stop)):
            answer.add(event)
        return answer

    def events(self, request: Request, stop: Stop = never) -> Iterator[Event]:
        """Yield all events of a reply. Raises HeteGenError where the engine itself yields Failed."""
        for event in _raising(self._engine.chat(request, stop)):
            if isinstance(event, Replanned) and event.plan is not None:
                self._plan = event.plan
            yield event

    def limit(self, vram: Size | None = None, ram: Size | None = None) -> Plan:
        """Apply new memory limits: weights move, nothing is loaded again. Raises NotEnoughMemory, DeviceLost."""
        for event in _raising(self._engine.replan(_bytes(vram), _bytes(ram))):
            if isinstance(event, Replanned) and event.plan is not None:
                self._plan = event.plan
        return self.plan

    def close(self) -> None:
        """Free the model's memory; using a closed model raises BadRequest."""
        self._engine.close()


class LoadArguments(TypedDict, total=False):
    """Limits and options of `load` and `plan`; what is not given is decided for this machine.

    `vram` and `ram` limit the memory used, `context` is in tokens. `kv`: the KV cache as the model computes it, or in 8
    bits ("int8"), which halves its memory. `simulate_gpu`: for example "vram=6GiB,link=12GB/s".
    """

    vram: Size | None
    ram: Size | None
    threads: int | None
    context: int | None
    format: FormatWish
    kv: KvFormat
    simulate_gpu: str | None


def load(
    source: str | Path | None = None, *, on_progress: Progress | None = None, **given: Unpack[LoadArguments]
) -> Model:
    """Load a model: a folder, a downloaded Hub id, or None for the built-in one. Raises HeteGenError."""
    _use_gpu_runtime()
    return load_with(source, _options(**given), on_progress)


def load_with(source: str | Path | None, options: LoadOptions, on_progress: Progress | None = None) -> Model:
    """Load a model as `load` does, with the options as one record. Raises HeteGenError."""
    return Model(*load_engine(source, options, on_progress))


def load_engine(
    source: str | Path | None, options: LoadOptions, on_progress: Progress | None = None
) -> tuple[Engine | RemoteEngine, Loaded]:
    """Load a model into an engine of its own, for callers that want events. Raises HeteGenError."""
    engine = _engine_for(source)
    for event in _raising(engine.load(source, options)):
        if isinstance(event, Loaded):
            return engine, event
        if isinstance(event, Loading) and on_progress is not None:
            on_progress(event)
    raise AssertionError("a load ends with Loaded or an error")


def _engine_for(source: str | Path | None) -> Engine | RemoteEngine:
    if str(source).startswith(REMOTE_PREFIX):
        from core.remote.engine import RemoteEngine
        from core.remote.keys import key_of

        return RemoteEngine(lambda url: key_of(None, url))
    prepare_environment()
    with importing():
        from core.engine import Engine
    return Engine()


def plan(source: str | Path, **given: Unpack[LoadArguments]) -> Plan:
    """Plan a model for this machine without loading it; one that is not on this disk is looked up on the Hub.

    Raises HeteGenError. A model that does not fit has a plan, too, whose `fits` is "no".
    """
    _use_gpu_runtime()
    return plan_with(str(source), _options(**given)).plan


def plan_with(source: str, options: LoadOptions, client: Callable[[], Client] | None = None) -> Planned:
    """Plan as `plan` does, with the options as one record; `client` makes the Hub client. Raises HeteGenError."""
    prepare_environment()
    from core.hardware.machine import open_machine
    from core.planning.planner import place
    from core.runtime.loader import check, check_context

    check(options)
    spec = _specification(source, client or _client)
    check_context(spec, options)
    hardware = open_machine(cache_folder(), options.simulate_gpu, options.threads).now()
    return Planned(place(spec, hardware, options), spec, hardware)


def judge_files(source: str, options: LoadOptions, client: Callable[[], Client] | None = None) -> tuple[Judged, ...]:
    """Return the GGUF models of a repository on the Hub, each with how it would run here. Raises HeteGenError."""
    prepare_environment()
    from core.hardware.machine import open_machine
    from core.hub.fit import Wishes
    from core.hub.gguf_header import judge
    from core.hub.listing import list_files, model_info, parse_reference
    from core.runtime.fit import FitChecker

    reference = parse_reference(source)
    machine = open_machine(cache_folder(), options.simulate_gpu, options.threads)
    check_fit, wishes = FitChecker(machine.now, options), Wishes(options.format, options.context)
    with (client or _client)() as hub:
        listing = list_files(hub, reference.id, model_info(hub, reference).revision)
        return tuple(judge(hub, listing, check_fit, wishes))


def conversation(messages: Messages) -> tuple[Message, ...]:
    """Convert a conversation in any form that `Messages` allows to records. Raises BadRequest."""
    if isinstance(messages, str):
        return (Message("user", messages),)
    return tuple(one if isinstance(one, Message) else _message(one) for one in messages)


def _message(turn: Mapping[str, str]) -> Message:
    try:
        return Message(**turn)  # type: ignore[arg-type]
    except TypeError as error:
        raise BadRequest("A message needs a role and content.", "", "Give `role` and `content`.") from error


def _raising(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        yield event


def _use_gpu_runtime() -> None:
    """Have the downloaded GPU build of torch imported, if there is a working one."""
    if "torch" in sys.modules:
        return
    from core.gpu_runtime.start import activate
    from core.gpu_runtime.store import Runtime

    activate(Runtime(gpu_runtime()), attempt=None)


def _specification(name: str, client: Callable[[], Client]) -> ModelSpec:
    from core.hub.installed import PATH_LIKE
    from core.model.model_source import open_source
    from core.model.spec_cache import specification_of

    try:
        source = open_source(name)
    except ModelNotFound:
        if name.startswith(SHAPE_PREFIX) or PATH_LIKE.match(name) or not REMOTE_ID.fullmatch(name):
            raise
        return _remote_specification(name, client)
    return specification_of(source)


def _remote_specification(name: str, make_client: Callable[[], Client]) -> ModelSpec:
    from core.hub.listing import parse_reference
    from core.hub.remote_spec import read_remote
    from core.runtime.fit import describe

    with make_client() as client:
        reference = parse_reference(name)
        remote = read_remote(client, reference)
    return describe(remote.config, remote.tensors, reference.name)


def _client() -> Client:
    from core.hub.access import Access
    from core.hub.environment import hub_environment
    from core.keyring import system_keyring

    return Access(hub_environment(os.environ), system_keyring()).client()


def _options(vram: Size | None = None, ram: Size | None = None, **others: Any) -> LoadOptions:
    """Return the arguments as a record. Raises BadRequest for an invalid size."""
    return LoadOptions(_bytes(vram), _bytes(ram), **others)


def _bytes(size: Size | None) -> int | None:
    """Parse a size. Raises BadRequest if it is invalid."""
    return parse_size(size) if isinstance(size, str) else size


__all__ = ["Answer", "HeteGenError", "Message", "Model", "Plan", "conversation", "load", "plan"]
