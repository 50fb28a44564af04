"""Loads a model: read, measure, plan, fill, convert and place it, in steps between which loading can be stopped.

`planner` decides the plan, which is carried out here. A model is first opened, which takes no memory for weights and
finds most of what prevents a load: until then another model can stay loaded.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import BadRequest, NotEnoughMemory
from core.events import NO_DRAFT, Loading, LoadOptions
from core.generation.sampler import from_generation_config
from core.generation.tokenizer import Tokenizer
from core.hardware.machine import Machine, assume_machine, open_machine
from core.model.filling import fill
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import Source, open_source
from core.model.placement import DevicePlacement, HostPlacement
from core.model.postponed import Postponed, untied
from core.model.spec_cache import specification_of
from core.paths import cache_folder
from core.planning.drafting import Drafting
from core.planning.planner import freed_machine, place
from core.planning.profile_store import model_key, recall
from core.runtime.drafting import DraftSource, check_vocabulary, load_draft, open_draft, plan_draft
from core.runtime.expert_uses import recall_uses
from core.runtime.loaded_model import LoadedModel, with_pinning_note
from core.runtime.rehearsal import rehearse
from core.sentence import sentence
from core.spec import KV_FORMATS, MAX_CONTEXT, MIN_CONTEXT, Budget, Hardware, ModelSpec, Plan, Profile, Strategy

# Smaller models are fast anywhere: do not make the user wait for measurements.
SMALL_BYTES = 64 << 20
# Measuring the current CPU speed takes as long as loading a model of this size.
PACED_BYTES = 512 << 20


@dataclass(frozen=True)
class Opened:
    """A model that is read up to its weights, and the machine that it is to run on."""

    source: Source
    spec: ModelSpec
    machine: Machine
    tokenizer: Tokenizer | None
    drafting: DraftSource | None
    options: LoadOptions


def load_model(
    name: str | Path | None, options: LoadOptions, strategy: Strategy = "hetegen"
) -> Iterator[Loading | LoadedModel]:
    """Yield loading events, then the model. Closing the iterator stops and frees everything. Raises HeteGenError."""
    opened = yield from open_model(name, options)
    yield from load_opened(opened, strategy)


def open_model(name: str | Path | None, options: LoadOptions) -> Generator[Loading, None, Opened]:
    """Check the options, read the model's description and tokenizer, and the record of the machine, which is measured
    if there is none; holds no memory of a device. Raises HeteGenError."""
    yield Loading("start", 0.0)
    check(options)
    drafting = open_draft(name, source := open_source(name), options)
    yield Loading("read", 0.02)
    spec = specification_of(source)
    yield Loading("tokenizer", 0.04)
    tokenizer = _tokenizer(source, drafting)
    yield Loading("measure", 0.05)
    return Opened(source, spec, _machine(source, options), tokenizer, drafting, options)


def check_room(opened: Opened, present: LoadedModel) -> None:
    """Raise BadRequest or NotEnoughMemory if a model could not be loaded even with all memory of the present one."""
    plans = [present.plan] if present.draft is None else [present.plan, present.draft.plan]
    _plan(opened, freed_machine(opened.machine.now(), plans))


def load_opened(opened: Opened, strategy: Strategy = "hetegen") -> Iterator[Loading | LoadedModel]:
    """Yield loading events, then the model. Closing the iterator stops and frees everything. Raises HeteGenError."""
    source, spec, machine, options = opened.source, opened.spec, opened.machine, opened.options
    with ExitStack() as cleanup:
        cleanup.callback(machine.close)
        if source.nbytes >= PACED_BYTES:
            machine.keep_pace()
        plan, beside = _plan(opened, machine.now(), strategy)
        torch.set_num_threads(plan.threads)
        weights = yield from _make_weights(source, spec, plan, machine)
        placement = _placement(source, spec, plan, weights, machine, options)
        if isinstance(placement, DevicePlacement):
            cleanup.callback(placement.close)
            plan = yield from _place(plan, placement, source.files)
        loaded = LoadedModel(
            name=source.name,
            source=source,
            spec=spec,
            plan=plan,
            budget=_decided(options, plan, beside),
            machine=machine,
            weights=weights,
            model=LanguageModel(source.module, placement),
            cache=placement.make_cache(source.module.config, plan),
            tokenizer=opened.tokenizer,
            sampling=from_generation_config(source.generation),
            profile=plan.profile,
            drafts=options.draft != NO_DRAFT,
        )
        cleanup.pop_all()
        cleanup.callback(loaded.close)
        rehearse(loaded.model, plan)
        if opened.drafting and beside:
            yield from _load_draft(loaded, opened.drafting, beside)
        yield Loading("ready", 1.0)
        cleanup.pop_all()
    yield loaded


def _make_weights(
    source: Source, spec: ModelSpec, plan: Plan, machine: Machine
) -> Generator[Loading, None, HostWeights]:
    """Read the weights, and convert them to the plan's format."""
    postponed = yield from _read_weights(source, spec, plan)
    copied = plan.head_copy > 0
    weights = HostWeights(source, spec, plan.format, machine.kernels, cache_folder(), postponed, head_copy=copied)
    for fraction in weights.make():
        yield Loading("convert", 0.4 + 0.3 * fraction)
    return weights


def _placement(
    source: Source, spec: ModelSpec, plan: Plan, weights: HostWeights, machine: Machine, options: LoadOptions
) -> HostPlacement | DevicePlacement:
    """Put the plan's linears into the tree, with all rows on the CPU at first, also where a GPU takes over."""
    host = HostPlacement(source.module, weights)
    if plan.gpu < 0:
        return host
    device = machine.accelerator(plan.gpu)
    device.limit(options.vram)
    return DevicePlacement(source.module, weights, plan, device, spec.kv_layers)


def _tokenizer(source: Source, drafting: DraftSource | None) -> Tokenizer | None:
    tokenizer = Tokenizer.of(source)
    if drafting is not None:
        check_vocabulary(drafting, tokenizer)
    return tokenizer


def _place(plan: Plan, placement: DevicePlacement, files: Sequence[Path]) -> Generator[Loading, None, Plan]:
    """Copy weights to the GPU, the most used experts first; return the plan as realised."""
    placement.recall_expert_uses(recall_uses(cache_folder(), files))
    for fraction in placement.apply(plan):
        yield Loading("place", 0.7 + 0.2 * fraction)
    return with_pinning_note(plan, placement)


def _load_draft(loaded: LoadedModel, source: DraftSource, beside: Drafting) -> Iterator[Loading]:
    for step in load_draft(source, beside, loaded.machine, loaded.model, loaded.spec.vocab):
        if isinstance(step, float):
            yield Loading("convert", 0.9 + 0.09 * step)
        else:
            loaded.draft = step


def _decided(options: LoadOptions, plan: Plan, beside: Drafting | None) -> Budget:
    """Return the user's limits, with the plan's decisions."""
    vram = _left(options.vram, beside)
    return Budget(vram, options.ram, plan.threads, plan.context, plan.format, plan.kv, not plan.head_copy)


def _left(vram: int | None, beside: Drafting | None) -> int | None:
    """Return the user's VRAM limit minus what a draft model takes."""
    return vram if vram is None or beside is None or beside.draft.gpu < 0 else max(0, vram - beside.nbytes)


def _machine(source: Source, options: LoadOptions) -> Machine:
    if source.nbytes < SMALL_BYTES:
        return assume_machine(options.simulate_gpu, options.threads)
    return open_machine(cache_folder(), options.simulate_gpu, options.threads)


def _plan(opened: Opened, hardware: Hardware, strategy: Strategy = "hetegen") -> tuple[Plan, Drafting | None]:
    """Return the plan for a model on a machine, and both plans if another one drafts. Raises BadRequest,
    NotEnoughMemory."""
    spec, options = opened.spec, opened.options
    check_context(spec, options)
    plan = place(spec, hardware, options, strategy)
    if (learned := recall(cache_folder(), model_key(plan, hardware))) != Profile():
        plan = place(spec, hardware, options, strategy, learned)
    if plan.fits == "no":
        raise NotEnoughMemory(plan.reason, "", "Close other programs, or choose a smaller model or a shorter context.")
    beside = plan_draft(opened.drafting, spec, plan, hardware, options) if opened.drafting else None
    return (beside.target, beside) if beside else (plan, None)


def check_context(spec: ModelSpec, options: LoadOptions) -> None:
    """Raise BadRequest for a context that is longer than the model reads."""
    if options.context and options.context > spec.context_limit:
        limit = f"{spec.context_limit:,}"
        raise BadRequest(
            sentence("This model reads at most {} tokens.", limit),
            "",
            sentence("Choose a context of {} or less.", limit),
        )


def check(options: LoadOptions) -> None:
    """Raise BadRequest for options that are invalid on any machine."""
    if options.context is not None and not MIN_CONTEXT <= options.context <= MAX_CONTEXT:
        raise BadRequest(
            sentence("A context of {} tokens is out of range.", f"{options.context:,}"), "", "Choose 256 to 10,000,000."
        )
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise BadRequest(sentence("{} threads cannot be used.", options.threads), "", "Choose 1 to 1024.")
    if options.format not in ("auto", "bf16", "int8", "int4"):
        raise BadRequest(
            sentence("The format {} is not known.", repr(options.format)), "", "Choose auto, bf16, int8 or int4."
        )
    if options.kv not in KV_FORMATS:
        raise BadRequest(sentence("The format {} is not known.", repr(options.kv)), "", "Choose bf16 or int8.")


def _read_weights(source: Source, spec: ModelSpec, plan: Plan) -> Generator[Loading, None, Postponed]:
    """Fill the tree; return the weights left out, which are read when they are converted."""
    postponed = Postponed(() if spec.mapped(plan.format) else untied(source.module, spec.linears))
    # Weights that are used as stored are read at every token: read them into the page cache first.
    if spec.mapped(plan.format) and not plan.from_disk:
        for fraction in source.warm():
            yield Loading("weights", 0.1 + 0.2 * fraction)
    for fraction in fill(source.module, source.weights, postponed):
        yield Loading("weights", 0.3 + 0.1 * fraction)
    return postponed
