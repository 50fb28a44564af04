"""A model that is ready, and the one place that changes how it lies: to another plan, to a GPU, back to the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from core.errors import BadRequest, DeviceLost, NotEnoughMemory
from core.events import ExpertShares, Message, Sampling
from core.generation.grammar import Grammars
from core.generation.prompt_lookup import PromptLookup
from core.generation.speculation import Speculation
from core.generation.tokenizer import Tokenizer
from core.hardware.machine import Machine
from core.layers.kv_cache import KVCache
from core.layers.kv_parking import ParkedPrefixes
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import Source
from core.model.placement import DevicePlacement, HostPlacement
from core.paths import cache_folder
from core.planning.expert_cache import popularity
from core.planning.planner import place
from core.planning.profile_store import model_key, remember
from core.planning.sight import without_sight
from core.runtime.drafting import DraftModel
from core.runtime.expert_uses import keep_uses, recall_uses
from core.runtime.kept_readings import KeptReadings
from core.sentence import sentence
from core.spec import Budget, ModelSpec, Plan, Profile
from core.vision.processor import load_processor
from core.vision.tower import Tower, has_tower, placeholder_id
from core.vision.vision import ModelVision
from core.weights.packed_cache import cache_key

UNLOCKED = sentence("The system lets too little memory be locked for fast copies, so streaming to the card is slower.")


@dataclass(frozen=True)
class SaidReply:
    """The last reply by its ids, to be carried on by them: `prompt` and then `drawn`, and what was asked and shown."""

    asked: tuple[Message, ...]
    prompt: list[int]
    drawn: list[int]
    content: str
    reasoning: str

    def is_last_of(self, messages: Sequence[Message]) -> bool:
        """Whether these messages end with this reply, unchanged."""
        last = messages[-1]
        said = (last.content.strip(), last.reasoning.strip()) == (self.content.strip(), self.reasoning.strip())
        return said and self.asked == tuple(messages[:-1])


@dataclass
class LoadedModel:
    """All that a conversation needs. Others read its fields; only its methods change where weights and cache lie.

    `budget`: the user's limits of memory, with the format, context and threads that were decided at the load.
    `tokenizer` is None for a shape. `reply_start`: number of cached tokens before the last reply; `said`: that reply,
    if it can be carried on.
    `drafts`: whether tokens are drafted ahead, by prompt lookup and by `draft` if there is one.
    `can_use_device`: False once the GPU was lost or full for good. `tower`: what sees, once there was a picture.
    """

    name: str
    source: Source
    spec: ModelSpec
    plan: Plan
    budget: Budget
    machine: Machine
    weights: HostWeights
    model: LanguageModel
    cache: KVCache
    tokenizer: Tokenizer | None
    sampling: Sampling
    profile: Profile = field(default_factory=Profile)
    can_use_device: bool = True
    reply_start: int = 0
    said: SaidReply | None = None
    drafts: bool = True
    draft: DraftModel | None = None
    tower: Tower | None = None

    @property
    def sees(self) -> bool:
        """Whether pictures can be shown to it."""
        if self.source.folder is None or self.tokenizer is None:
            return False
        return self.model.vision is not None or has_tower(self.source.module)

    def open_vision(self) -> None:
        """Ready the parts that see, for the first picture. Raises BadRequest for a model without them, ModelUnreadable,
        UnsupportedModel, NotEnoughMemory."""
        if self.model.vision is not None:
            return
        module, folder = self.source.module, self.source.folder
        placeholder = placeholder_id(module.config)
        if folder is None or self.tokenizer is None or placeholder is None or not self.sees:
            raise BadRequest(
                "This model cannot see pictures.", "It only reads text.", "Choose a model that sees, or ask without it."
            )
        processor = load_processor(folder, module.config, self.tokenizer.backend, placeholder)
        vision = ModelVision(module, self.source.weights, processor)
        self.model.vision = self.tokenizer.vision = vision
        self.tower = vision.tower
        self._place_sight()

    @property
    def sight_to_come(self) -> int:
        """Bytes of the card that what sees takes at the first picture."""
        return 0 if self.plan.gpu < 0 or self.tower is not None else self.plan.memory[-1].sight

    def look_from_ram(self) -> bool:
        """Let what sees lie in RAM from now on; whether it lay on a card."""
        was_there = self.tower is not None and self.plan.sight_gpu >= 0
        self.budget = replace(self.budget, sight_on_card=False)
        self.plan = without_sight(self.plan)
        if was_there:
            self._place_sight()
        return was_there

    def speculation(self, ids: Sequence[int]) -> Speculation | None:
        """What drafts ahead in a reply to these ids; None where nothing is to."""
        if not self.drafts:
            return None
        blind = self.draft is None or min(ids) < 0  # the model that drafts would not see the pictures
        models = [] if blind or self.draft is None else [self.draft.drafter(self.cache, ids)]
        return Speculation([PromptLookup(), *models])

    def drop_draft(self) -> None:
        """Go on without the second model; its memory is free for the plans that follow."""
        if self.draft is not None:
            if self.draft.plan.gpu >= 0:
                self.machine.reserved.pop(self.draft.plan.gpu, None)
            self.model.on_states = None
            self.draft.close()
            self.draft = None

    @cached_property
    def grammars(self) -> Grammars:
        """Makes token masks for this model's tokenizer."""
        assert self.tokenizer is not None
        return Grammars(self.tokenizer)

    @cached_property
    def parked(self) -> ParkedPrefixes:
        """What the KV cache held of other conversations."""
        return ParkedPrefixes(self.plan.memory[0].parked)

    @cached_property
    def kept(self) -> KeptReadings | None:
        """What was read of conversations on disk; None for random weights."""
        if not self.source.files:
            return None
        recipe = f"kv {self.plan.kv} {self.plan.format} {self.source.module.config.to_json_string()}"
        return KeptReadings(cache_key(self.source.files, recipe))

    def keep_reading(self, conversation: str) -> None:
        """Begin to write what the KV cache holds to the disk, for the conversation of this id."""
        if conversation and self.kept is not None:
            self.kept.keep(conversation, self.cache, self.reply_start)

    def turn_to(self, ids: Sequence[int], conversation: str = "") -> None:
        """Let the KV cache hold as much of these ids as it ever did, or as the disk has of the conversation; none where
        the device is lost or full, as the pass that follows will find out and step down."""
        placement = self.model.placement
        self.settle()
        try:
            with placement.failures():
                if isinstance(placement, DevicePlacement):
                    placement.accelerator.synchronize()
                self.reply_start = self.parked.switch(self.cache, ids, self.reply_start, placement.device)
                if conversation and self.kept is not None:
                    self.reply_start = self.kept.recall(
                        conversation, self.cache, ids, self.reply_start, placement.device
                    )
        except (NotEnoughMemory, DeviceLost):
            self.cache.reset()
            self.reply_start = 0

    def limit(self, vram: int | None, ram: int | None) -> None:
        """Set the user's limits, in bytes, for the plans that follow."""
        self.budget = replace(self.budget, vram=vram, ram=ram)

    def move_to(self, plan: Plan) -> None:
        """Change to any plan for the same format and context, also to or from a GPU. Raises NotEnoughMemory and
        DeviceLost: a GPU that was in use is then partly filled, one that was not is left again."""
        if self.plan.gpu not in (-1, plan.gpu):
            self.to_host()
        if plan.gpu < 0:
            self.plan = plan
            assert isinstance(self.model.placement, HostPlacement)
            self.model.placement.reads_copy = plan.head_copy > 0
        elif self.plan.gpu < 0:
            self._to_device(plan)
        else:
            self.machine.accelerator(plan.gpu).limit(self.budget.vram)
            self._rearrange(plan)

    def to_host(self) -> None:
        """Go on without the GPU. If the KV cache cannot be copied back, it is a new and empty one."""
        self.drop_draft()
        self.plan = place(self.spec, self.machine.without_gpus(), replace(self.budget, vram=None))
        if not self._cache_comes_along():
            self.cache = KVCache(self.source.module.config, self.plan.context, format=self.plan.kv)
            self.reply_start = 0
        self.keep_expert_uses()
        if self.tower is not None:
            self.tower.come_back()
        self.model.placement.close()
        self.model.placement = HostPlacement(self.source.module, self.weights, reads_copy=self.plan.head_copy > 0)

    def avoid_device(self) -> None:
        """Go on without the GPU until `look_for_device`."""
        self.can_use_device = False
        if self.plan.gpu >= 0:
            self.to_host()

    def look_for_device(self) -> None:
        """Let the next plan use a GPU again: one that was lost may be back, as after sleep."""
        if self.machine.forget_lost() and self.plan.gpu >= 0:
            self.to_host()
        self.can_use_device = True
        self.budget = replace(self.budget, sight_on_card=True)

    def learn(self, profile: Profile) -> None:
        """Keep what a reply has taught of this model's speed here, and of its experts."""
        if isinstance(placement := self.model.placement, DevicePlacement):
            known = popularity(placement.expert_uses.values()) or profile.hottest
            profile = replace(profile, hottest=known)
        if profile != self.profile:
            self.profile = profile
            remember(cache_folder(), model_key(self.plan, self.machine.now()), profile)

    @property
    def expert_shares(self) -> ExpertShares | None:
        """Where the experts were computed that tokens chose; None where the card holds none whole."""
        placement = self.model.placement
        use = placement.expert_use if isinstance(placement, DevicePlacement) else None
        if use is None or not (chosen := use.hits + use.copied + use.computed):
            return None
        return ExpertShares(use.hits / chosen, use.copied / chosen, use.computed / chosen, use.held)

    def keep_expert_uses(self) -> None:
        """Keep how often each expert was used, for the next load."""
        if isinstance(placement := self.model.placement, DevicePlacement):
            keep_uses(cache_folder(), self.source.files, placement.expert_uses)

    def close(self) -> None:
        """Give the devices' memory back."""
        self.settle(finish=True)
        self.keep_expert_uses()
        self.drop_draft()
        if self.tower is not None:
            self.tower.come_back()
        self.model.placement.close()
        self.machine.close()

    def settle(self, *, finish: bool = False) -> None:
        """End the writing of what the KV cache holds, with `finish` when it is complete."""
        # Where nothing was written, the files are not asked for either: they may be gone by now.
        if (kept := vars(self).get("kept")) is not None:
            kept.settle(finish=finish)

    def _to_device(self, plan: Plan) -> None:
        device = self.machine.accelerator(plan.gpu)
        device.limit(self.budget.vram)
        apart = [] if self.tower is None else self.tower.parts
        try:
            placement = DevicePlacement(self.source.module, self.weights, plan, device, self.spec.kv_layers, apart)
            self.model.placement = placement
            placement.recall_expert_uses(recall_uses(cache_folder(), self.source.files))
            self._rearrange(plan)
        except (NotEnoughMemory, DeviceLost):
            self.to_host()
            raise

    def _rearrange(self, plan: Plan) -> None:
        """Change to another plan for the GPU in use. Raises NotEnoughMemory, DeviceLost."""
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
        self.plan = with_pinning_note(plan, placement)
        self._place_sight()

    def _place_sight(self) -> None:
        """Let what sees lie where the plan has it, or in RAM where the card has no room after all."""
        if self.tower is None:
            return
        try:
            self.tower.lie(self.model.placement, on_device=self.plan.sight_gpu >= 0)
        except NotEnoughMemory:
            self.look_from_ram()

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


def with_pinning_note(plan: Plan, placement: DevicePlacement) -> Plan:
    """The plan, with a reason more where the system lets too little memory be locked for it."""
    return replace(plan, reasons=(*plan.reasons, UNLOCKED)) if placement.streams_starved else plan
