"""From a name to a model that answers: read, measure, plan, fill, convert, place, in steps that can be stopped between.

The plan is decided by `planner`; here it is only carried out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from core.errors import BadRequest, DeviceLost, NotEnoughMemory
from core.events import Loading, LoadOptions, Sampling
from core.generation.sampler import from_generation_config
from core.generation.tokenizer import Tokenizer
from core.hardware.machine import Machine, assume_machine, open_machine
from core.layers.kv_cache import KVCache
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel, fill
from core.model.model_source import Source, open_source
from core.model.placement import DevicePlacement, HostPlacement
from core.model.spec_cache import specification
from core.paths import cache_folder
from core.planning.planner import place
from core.planning.profile_store import model_key, recall, remember
from core.spec import Budget, ModelSpec, Plan, Profile, Strategy

MIN_CONTEXT, MAX_CONTEXT = 256, 10_000_000
# Smaller models run at once anywhere: nobody should wait for measurements first.
SMALL_BYTES = 64 << 20
UNLOCKED = "The system lets too little memory be locked for fast copies, so streaming to the card is slower."


@dataclass
class LoadedModel:
    """All that a conversation needs. `tokenizer` is None for a shape; `reply_start`: where in the cache the last reply
    begins; the caps are the person's own wishes."""

    name: str
    source: Source
    spec: ModelSpec
    plan: Plan
    machine: Machine
    weights: HostWeights
    model: LanguageModel
    cache: KVCache
    tokenizer: Tokenizer | None
    sampling: Sampling
    profile: Profile = field(default_factory=Profile)
    can_use_device: bool = True  # False once it was lost or out of memory for good
    vram_cap: int | None = None
    ram_cap: int | None = None
    reply_start: int = 0

    def apply(self, plan: Plan) -> None:
        """Change to another plan for the same device, format and context. Raises NotEnoughMemory, DeviceLost."""
        placement = self.model.placement
        assert isinstance(placement, DevicePlacement)
        self.plan = plan
        there, home = placement.kv_places(plan), placement.kv_home(self.source.module.config)
        with placement.failures():
            # First what leaves the device, last what comes to it.
            self.cache.move({layer: there[layer] for layer in self.cache.away & there.keys()}, home)
            for _ in placement.apply(plan):
                pass
            self.cache.move(there, home)
        self.plan = told_of_locking(plan, placement)

    def move_to(self, plan: Plan) -> None:
        """Change to any plan for the same format and context, also to or from a device. Raises NotEnoughMemory,
        DeviceLost."""
        if self.plan.gpu not in (-1, plan.gpu):
            self.to_host()
        if plan.gpu < 0:
            self.plan = plan
        elif self.plan.gpu < 0:
            self.to_device(plan)
        else:
            self.machine.accelerator(plan.gpu).limit(self.vram_cap)
            self.apply(plan)

    def look_for_device(self) -> None:
        """A device that was lost may be back, as after sleep: let the next plan use it."""
        if self.machine.forget_lost() and self.plan.gpu >= 0:
            self.to_host()
        self.can_use_device = True

    def to_device(self, plan: Plan) -> None:
        """Use a device that was not used before. Raises NotEnoughMemory, DeviceLost: then all is in RAM as before."""
        device = self.machine.accelerator(plan.gpu)
        device.limit(self.vram_cap)
        try:
            self.model.placement = DevicePlacement(self.source.module, self.weights, plan, device, self.spec.kv_layers)
            self.apply(plan)
        except (NotEnoughMemory, DeviceLost):
            self.to_host()
            raise

    def to_host(self) -> None:
        """Go on without the device. What the KV cache held there is read again only if it cannot be had any more."""
        now = self.plan
        wishes = Budget(None, self.ram_cap, now.threads, now.context, now.format)
        self.plan = place(self.spec, self.machine.without_gpus(), wishes)
        if not self._cache_comes_along():
            self.cache = KVCache(self.source.module.config, self.plan.context)
            self.reply_start = 0
        self.model.placement.close()
        self.model.placement = HostPlacement(self.source.module, self.weights)

    def _cache_comes_along(self) -> bool:
        placement = self.model.placement
        if isinstance(placement, HostPlacement):
            return not self.cache.away
        if not self.cache.can_rewind:
            return False  # recurrent states do not move
        try:
            with placement.failures():
                placement.accelerator.synchronize()
                self.cache.move({})
        except (NotEnoughMemory, DeviceLost):
            return False
        return True

    def learn(self, profile: Profile) -> None:
        """Keep what a reply has taught of this model's speed here."""
        if profile != self.profile:
            self.profile = profile
            remember(cache_folder(), model_key(self.plan, self.machine.now()), profile)

    def close(self) -> None:
        """Give the devices' memory back."""
        self.model.placement.close()
        self.machine.close()


def load_model(
    name: str | Path | None, options: LoadOptions, strategy: Strategy = "hetegen"
) -> Iterator[Loading | LoadedModel]:
    """Loading events, then the model. Stop by not asking for the next event: all is given back. Raises HeteGenError."""
    yield Loading("start", 0.0)
    check(options)
    source = open_source(name)
    yield Loading("read", 0.02)
    spec = specification(source.module, source.name, cache_folder())
    yield Loading("measure", 0.05)
    with ExitStack() as unless_loaded:
        machine = _machine(source, options)
        unless_loaded.callback(machine.close)
        plan = decide(spec, machine, options, strategy)
        torch.set_num_threads(plan.threads)
        yield from _read_weights(source, plan)
        weights = HostWeights(source, spec, plan.format, machine.kernels, cache_folder())
        for fraction in weights.make():
            yield Loading("convert", 0.4 + 0.3 * fraction)
        placement: HostPlacement | DevicePlacement = HostPlacement(source.module, weights)
        if plan.gpu >= 0:
            device = machine.accelerator(plan.gpu)
            device.limit(options.vram)
            placement = DevicePlacement(source.module, weights, plan, device, spec.kv_layers)
            unless_loaded.callback(placement.close)
            for fraction in placement.apply(plan):
                yield Loading("place", 0.7 + 0.2 * fraction)
            plan = told_of_locking(plan, placement)
        yield Loading("tokenizer", 0.9)
        tokenizer = None if source.folder is None else Tokenizer.load(source.folder, source.stop_ids)
        yield Loading("ready", 1.0)
        loaded = LoadedModel(
            name=source.name,
            source=source,
            spec=spec,
            plan=plan,
            machine=machine,
            weights=weights,
            model=LanguageModel(source.module, placement),
            cache=placement.make_cache(source.module.config, plan),
            tokenizer=tokenizer,
            sampling=from_generation_config(source.generation),
            profile=plan.profile,
            vram_cap=options.vram,
            ram_cap=options.ram,
        )
        unless_loaded.pop_all()
    yield loaded


def _machine(source: Source, options: LoadOptions) -> Machine:
    if source.nbytes < SMALL_BYTES:
        return assume_machine(options.simulate_gpu, options.threads)
    machine = open_machine(cache_folder(), options.simulate_gpu, options.threads)
    machine.keep_pace()
    return machine


def told_of_locking(plan: Plan, placement: DevicePlacement) -> Plan:
    """The same plan, which says so where the system lets too little memory be locked for it."""
    return replace(plan, reasons=(*plan.reasons, UNLOCKED)) if placement.streams_starved else plan


def decide(spec: ModelSpec, machine: Machine, options: LoadOptions, strategy: Strategy = "hetegen") -> Plan:
    """The plan for a model on this machine as it is now. Raises BadRequest, NotEnoughMemory."""
    if options.context and options.context > spec.context_limit:
        limit = f"{spec.context_limit:,}"
        raise BadRequest(f"This model reads at most {limit} tokens.", "", f"Choose a context of {limit} or less.")
    hardware = machine.now()
    plan = place(spec, hardware, options, strategy)
    if (learned := recall(cache_folder(), model_key(plan, hardware))) != Profile():
        plan = place(spec, hardware, options, strategy, learned)
    if plan.fits == "no":
        raise NotEnoughMemory(plan.reason, "", "Close other programs, or choose a smaller model or a shorter context.")
    return plan


def check(options: LoadOptions) -> None:
    """Raise BadRequest for a wish that makes no sense on any machine."""
    if options.context is not None and not MIN_CONTEXT <= options.context <= MAX_CONTEXT:
        raise BadRequest(f"A context of {options.context:,} tokens is out of range.", "", "Choose 256 to 10,000,000.")
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise BadRequest(f"{options.threads} threads cannot be used.", "", "Choose 1 to 1024.")
    if options.format not in ("auto", "bf16", "int8", "int4"):
        raise BadRequest(f"The format {options.format!r} is not known.", "", "Choose auto, bf16, int8 or int4.")


def _read_weights(source: Source, plan: Plan) -> Iterator[Loading]:
    # Weights that are used as they are stored are read from the files at every token: have them in memory before.
    if plan.format == "bf16" and not plan.from_disk:
        for fraction in source.warm():
            yield Loading("weights", 0.1 + 0.2 * fraction)
    for fraction in fill(source.module, source.weights):
        yield Loading("weights", 0.3 + 0.1 * fraction)
