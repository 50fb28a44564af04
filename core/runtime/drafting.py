"""A draft model for a loaded one: its MTP head, its own int4 copy, its assistant, or another with its vocabulary.

`core.planning.drafting` decides whether it pays off and where it is placed; this module loads and places it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from core.accelerators.base import Accelerator
from core.errors import BadRequest
from core.events import AUTO, LOOKUP, MTP, NO_DRAFT, SELF, LoadOptions
from core.generation.assistant_drafter import AssistantDrafter, AssistantReading
from core.generation.guesses import Guesses
from core.generation.model_drafter import MirrorDrafter, ModelDrafter, SelfDrafter
from core.generation.mtp_drafter import MtpDrafter, MtpReading
from core.generation.speculation import Drafter
from core.generation.tokenizer import Tokenizer
from core.generation.tokenizer_files import has_tokenizer
from core.hardware.machine import Machine
from core.layers.kv_cache import KVCache
from core.layers.kv_mirror import MirroredCache
from core.model.assistant import open_assistant
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import Source, open_source
from core.model.mtp import join_of, open_mtp
from core.model.placement import DevicePlacement, HostPlacement
from core.model.spec_cache import specification_of
from core.paths import cache_folder
from core.planning.drafting import DRAFT_FORMAT, Drafting, plan_drafting, prices, without_kv
from core.runtime.rehearsal import rehearse
from core.sentence import sentence
from core.spec import Hardware, ModelSpec, Plan

WORTH_A_COPY = 1.2
"""The expected speed-up of a reply from which a draft model is loaded automatically."""
WARM_UP = 3
"""Passes before the first draft: to read the weights, to see which layers one call computes, and by this call."""
OWN_COPY = "its own int4 copy"
OWN_HEAD = "its MTP head"


class Kind(Enum):
    """The relation of a draft model to its target."""

    HEAD = auto()
    COPY = auto()
    ASSISTANT = auto()
    OTHER = auto()


WITHOUT_CACHE = (Kind.COPY, Kind.ASSISTANT)
"""Draft models that read the target's KV cache."""


@dataclass
class DraftModel:
    """A draft model. `cache`: its own, or None if it uses the target's; `follows`: the device with the target's KV
    cache, of which `cache` is a copy; `reading`: what an MTP head has read; `assistant`: what an assistant knows of the
    target; `gain`: the expected speed-up; `vocabulary`: the number of ids that both models know."""

    name: str
    plan: Plan
    gain: float
    nbytes: int
    model: LanguageModel
    cache: KVCache | None
    vocabulary: int
    follows: Accelerator | None = None
    reading: MtpReading | None = None
    assistant: AssistantReading | None = None
    guesses: Guesses = field(default_factory=Guesses)

    def drafter(self, target: KVCache, ids: Sequence[int]) -> Drafter:
        """Return a drafter for one reply to `ids`, for the model whose cache is `target`."""
        if self.reading is not None:
            self.reading.begin(ids)
            return MtpDrafter(self.name, self.reading, self.vocabulary, self.guesses)
        if self.assistant is not None:
            return AssistantDrafter(self.name, self.assistant, target, self.vocabulary, self.guesses)
        if self.cache is None:
            return SelfDrafter(self.name, self.model, target, self.vocabulary, self.guesses)
        if self.follows is not None:
            mirrored = MirroredCache(target, self.cache, self.follows)
            return MirrorDrafter(self.name, self.model, mirrored, self.vocabulary, self.guesses)
        return ModelDrafter(self.name, self.model, self.cache, self.vocabulary, self.guesses)

    @property
    def reads_ids(self) -> bool:
        """Whether it reads the text itself, and so cannot follow pictures; an assistant reads the target's states."""
        return self.assistant is None

    def close(self) -> None:
        """Free a GPU's memory."""
        self.model.placement.close()


@dataclass(frozen=True)
class DraftSource:
    """A draft model before it is loaded."""

    source: Source
    spec: ModelSpec
    kind: Kind


def open_draft(name: object, target: Source, options: LoadOptions) -> DraftSource | None:
    """Open the draft model that `options.draft` asks for, for the model `target` called `name`; None if no second model
    is needed. Raises HeteGenError."""
    if options.draft in (LOOKUP, NO_DRAFT):
        return None
    if options.draft in (AUTO, MTP) and (head := open_mtp(target)) is not None:
        # An MTP head shares the model's input table.
        return DraftSource(head, replace(specification_of(head), embedding_bytes=0), Kind.HEAD)
    if options.draft == MTP:
        raise BadRequest(
            "This model has no MTP head that could draft.",
            "Its files hold none, or one of a kind that is not known here.",
            "Choose another way to guess ahead.",
        )
    is_copy = options.draft in (SELF, AUTO)
    if not is_copy and (assistant := open_assistant(options.draft, target)) is not None:
        # It looks tokens up in the model's input table.
        return DraftSource(assistant, replace(specification_of(assistant), embedding_bytes=0), Kind.ASSISTANT)
    source = open_source(str(name) if is_copy and name is not None else None if is_copy else options.draft)
    return DraftSource(source, specification_of(source), Kind.COPY if is_copy else Kind.OTHER)


def plan_draft(
    wanted: DraftSource, spec: ModelSpec, alone: Plan, hardware: Hardware, options: LoadOptions
) -> Drafting | None:
    """Return the plans of both models; None if drafting does not pay off. Raises BadRequest if a requested one cannot
    be loaded."""
    if options.draft == AUTO and wanted.kind is Kind.COPY and alone.format == DRAFT_FORMAT:
        return None
    shares = wanted.kind in WITHOUT_CACHE
    found = plan_drafting(spec, wanted.spec, alone, hardware, options, shares_cache=shares)
    if options.draft == AUTO:
        return found if found and found.gain >= WORTH_A_COPY else None
    if found is None:
        raise BadRequest(
            "There is no room for a second model that drafts.", "", "Choose a smaller one, or a smaller format."
        )
    return found


def check_vocabulary(wanted: DraftSource, target: Tokenizer | None) -> None:
    """Raise BadRequest unless both models tokenize text identically."""
    if not _has_own_tokenizer(wanted):
        return
    other = Tokenizer.of(wanted.source)
    if other is None or target is None:
        same = other is target
    else:
        # An assistant gets ids from the target alone; its files may name a few control tokens more or fewer.
        same = other.agrees_with(target) if wanted.kind is Kind.ASSISTANT else other.same_ids(target)
    if not same:
        raise BadRequest(
            sentence("{} cannot draft for this model.", wanted.source.name),
            "The two models split text into other tokens.",
            "Choose a smaller model of the same family.",
        )


def load_draft(
    wanted: DraftSource, found: Drafting, machine: Machine, target: LanguageModel, ids: int
) -> Iterator[float | DraftModel]:
    """Yield the fractions done, then the draft model of `target`, whose vocabulary has `ids` ids. Raises
    HeteGenError."""
    placement = yield from _place(wanted, found, machine)
    model = LanguageModel(wanted.source.module, placement)
    made = DraftModel(
        _shown(wanted), found.draft, found.gain, found.nbytes, model, None, min(ids, wanted.spec.vocab),
        guesses=Guesses(prices(found.target, found.draft)),
    )  # fmt: skip
    made.follows = machine.accelerator(found.target.gpu) if _follows(wanted, found) else None
    if wanted.kind not in WITHOUT_CACHE or made.follows is not None:
        made.cache = placement.make_cache(model.module.config, found.draft)
    if wanted.kind is not Kind.HEAD and found.draft.gpu < 0:
        _warm_up(model)
    if wanted.kind in (Kind.COPY, Kind.OTHER):
        rehearse(model, found.draft)
    _listen(made, wanted.kind, target)
    yield made


def _place(
    wanted: DraftSource, found: Drafting, machine: Machine
) -> Generator[float, None, HostPlacement | DevicePlacement]:
    """Read the weights, and place them as planned."""
    weights = yield from _make_weights(wanted, machine)
    module, gpu = wanted.source.module, found.draft.gpu
    host = HostPlacement(module, weights)
    if gpu < 0:
        return host
    layers = without_kv(wanted.spec).kv_layers if wanted.kind in WITHOUT_CACHE else wanted.spec.kv_layers
    placement = DevicePlacement(module, weights, found.draft, machine.accelerator(gpu), layers)
    for fraction in placement.apply(found.draft):
        yield 0.8 + 0.2 * fraction
    machine.reserved[gpu] = found.nbytes
    return placement


def _make_weights(wanted: DraftSource, machine: Machine) -> Generator[float, None, HostWeights]:
    """Read the weights, and convert them to a draft's format."""
    for fraction in fill(wanted.source.module, wanted.source.weights):
        yield 0.2 * fraction
    weights = HostWeights(wanted.source, wanted.spec, DRAFT_FORMAT, machine.kernels, cache_folder())
    for fraction in weights.make():
        yield 0.2 + 0.6 * fraction
    return weights


def _listen(draft: DraftModel, kind: Kind, target: LanguageModel) -> None:
    """Let a draft that reads the target's states see those of each pass."""
    if kind is Kind.HEAD and draft.cache is not None:
        draft.reading = MtpReading(draft.model, join_of(draft.model.module), draft.cache)
        target.on_states = draft.reading.see
    if kind is Kind.ASSISTANT:
        draft.assistant = AssistantReading(draft.model, target)
        target.on_states = draft.assistant.see


def _warm_up(model: LanguageModel) -> None:
    """Run a draft model on the CPU: its first passes, which read its weights from disk, say nothing about its speed."""
    cache = KVCache(model.module.config, WARM_UP)
    for _ in range(WARM_UP):
        model.forward([0], cache)


def _follows(wanted: DraftSource, found: Drafting) -> bool:
    """Return whether a copy of the model drafts on the CPU beside a device that may hold the KV cache."""
    return wanted.kind is Kind.COPY and found.draft.gpu < 0 <= found.target.gpu


def _has_own_tokenizer(wanted: DraftSource) -> bool:
    folder = wanted.source.folder
    return wanted.kind is Kind.OTHER or (wanted.kind is Kind.ASSISTANT and folder is not None and has_tokenizer(folder))


def _shown(wanted: DraftSource) -> str:
    return {Kind.HEAD: OWN_HEAD, Kind.COPY: OWN_COPY}.get(wanted.kind, wanted.source.name)
